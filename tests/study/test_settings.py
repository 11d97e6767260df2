import pytest
import yaml

from base.errors import SettingsError
from brainlm import BrainLMError, save_checkpoint
from brainlm.errors import CheckpointError
from cohorts import load_atlas
from harmonization import Categorical, Continuous
from study.settings import load_study
from tests.support.federation import STUDY
from tests.support.released import DENSE, make_released


def test_a_resolved_study_reads_back_the_same(read, tmp_path):
    study = read()
    (tmp_path / "again.yaml").write_text(study.to_yaml())

    assert load_study(tmp_path / "again.yaml") == study


def test_models_and_atlas_tables_are_found_beside_the_study(read, tmp_path):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(STUDY["model"]))
    (tmp_path / "mine.json").write_text(load_atlas("schaefer100").to_json())

    study = read(model="model.yaml", cohort={"atlases": ["mine.json"]})

    assert study.model == read().model
    assert study.contract().atlases == {"schaefer100": load_atlas("schaefer100").content_hash}


def test_the_recipe_says_what_is_residualized_unless_the_study_does(read):
    assert read().residualized == ("age", "sex", "site", "mean_fd", "tsnr")
    changed = read(harmonization={"residualize": ["age", "site"]})
    assert changed.residualized == ("age", "site")


def test_the_contract_names_every_covariate_that_is_used(read):
    study = read(
        covariates={"scanner": {"levels": ["GE", "Siemens"]}, "iq": {"center": 100, "scale": 15}},
        harmonization={"keep": ["age", "scanner"], "residualize": ["sex", "site"]},
        analyses={"targets": ["iq"]},
    )

    assert study.contract().covariates == {"age": (), "iq": (), "scanner": ("GE", "Siemens"), "sex": ("F", "M")}
    assert study.coding("scanner") == Categorical("scanner", ("GE", "Siemens"))
    assert study.coding("iq") == Continuous("iq", 100, 15)


def test_a_study_asks_for_all_that_it_will_do(read):
    assert "combat" in read().asks_for()
    assert "combat" not in read(harmonization={"method": "none"}).asks_for()
    assert "cross_validated_ridge" not in read(analyses={"targets": []}).asks_for()
    assert "second_moments" in read().asks_for()
    assert "second_moments" not in read(analyses={"gaussian_baseline": False}).asks_for()
    assert "quantiles" not in read().asks_for()


@pytest.mark.parametrize(
    ("rule", "fewest"),
    [("none", 3), ("median", 5), ("trimmed_mean", 5), ("krum", 7), ("multi_krum", 7), ("bulyan", 11)],
)
def test_robust_rules_are_taken_with_a_quorum_that_can_outvote_the_wrong(read, tmp_path, rule, fewest):
    wrong = {} if rule == "none" else {"byzantine": 2}

    averaging = {"robust": rule, "quorum": fewest, "optimizer": "fedavgm", **wrong}
    study = read(averaging=averaging, privacy={"secure_sums": False})

    assert study.averaging.robust == rule
    (tmp_path / "again.yaml").write_text(study.to_yaml())
    assert load_study(tmp_path / "again.yaml") == study


def test_a_study_asks_for_what_shows_a_single_site_by_name(read):
    study = read(
        harmonization={"smooth": {"age": [18, 90]}},
        analyses={"targets": ["age", "sex"], "leave_one_site_out": True, "compare": ["combat_gam", "covbat"]},
        association={"vectors": "genes", "two_tower": True},
    )

    asked = study.asks_for()
    assert "leave_one_site_out" in asked
    assert "reference_site" in read(harmonization={"reference": "oslo"}).asks_for()
    assert {"cross_validated_ridge", "cross_validated_logistic", "cross_validated_cca", "two_tower"} <= set(asked)
    assert {"combat", "combat_gam", "covbat"} <= set(asked)
    assert len(asked) == len(set(asked))
    assert not {"leave_one_site_out", "reference_site"} & set(read().asks_for())


def test_one_model_keeps_what_is_removed_later(read):
    assert read().kept == ("age", "sex")
    together = read(harmonization={"order": "one_model", "keep": ["age"]})
    assert together.kept == ("age", "sex", "mean_fd", "tsnr")


def test_bounds_of_a_curve_are_coded_as_the_covariate_is(read):
    study = read(harmonization={"keep": ["sex", "age"], "smooth": {"age": [20, 90]}})

    options = study.options_of("combat_gam", study.design(study.kept), ["a", "b"])

    assert options["smooth"] == [(1, -1.5, 2.0)]  # sex=M is the first column; age is coded as (age - 50) / 20
    assert study.options_of("site_adversarial", study.design(()), ["a", "b"]) == {"sites": ["a", "b"]}


def test_robust_scaling_asks_for_quantiles_and_for_recordings_that_kept_their_units(read):
    model = {**STUDY["model"], "window": {**STUDY["model"]["window"], "scaling": "robust"}}
    robust = read(model=model)

    assert "quantiles" in robust.asks_for()
    assert robust.contract().scalings == ("raw",)
    assert read().contract().scalings == ("raw", "zscore")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"study": "../x"}, "study"),
        ({"recipe": "mine"}, "recipe 'mine' is not known"),
        (
            {"analyses": {"targets": ["iq"]}},
            "'iq' of analyses.targets has no coding. Add it under 'covariates': iq: {levels: ",
        ),
        ({"analyses": {"targets": ["site"]}}, "which is measured anyway"),
        ({"analyses": {"compare": ["combat_gam"]}}, "combat_gam needs harmonization.smooth"),
        ({"harmonization": {"smooth": {"sex": [0, 1]}}}, "'sex' is no number in harmonization.keep"),
        ({"harmonization": {"smooth": {"mean_fd": [0, 1]}}}, "'mean_fd' is no number in harmonization.keep"),
        ({"harmonization": {"smooth": {"age": [90, 18]}}}, "'age' has bounds 90 and 18"),
        ({"harmonization": {"method": "covbat", "reference": "oslo"}}, "an option of method combat alone"),
        (
            {"harmonization": {"reference": "oslo"}, "analyses": {"leave_one_site_out": True}},
            "would leave out harmonization.reference",
        ),
        ({"harmonization": {"method": "none", "order": "one_model"}}, "one_model needs method combat"),
        ({"association": {"vectors": "../genes"}}, r"association\.vectors"),
        ({"harmonization": {"keep": ["site"]}}, "which harmonization is there to remove"),
        ({"harmonization": {"method": "kombat"}}, r"harmonization\.method"),
        ({"harmonization": {"residualize": ["age", "age"]}}, r"harmonization\.residualize holds 'age' twice"),
        ({"analyses": {"targets": ["sex", "age", "sex"]}}, r"analyses\.targets holds 'sex' twice"),
        ({"covariates": {"age": {"scale": 1e-300}}}, r"'covariates\.age\.scale' is 1e-300; expected a number from"),
        ({"training": {"steps_per_round": True}}, r"'training\.steps_per_round' is true; expected a whole number"),
        ({"training": {"learning_rte": 1}}, "Did you mean 'learning_rate'"),
        ({"model": {"width": 30, "heads": 4}}, "heads 4 does not divide"),
        ({"model": {"window": {"n_frames": 50, "patch_frames": 20}}}, "is no multiple of patch_frames"),
        ({"model": "none.yaml"}, "no such file"),
        ({"averaging": {"rounds": 0}}, r"averaging\.rounds"),
        ({"averaging": {"optimizer": "fedsgd"}}, r"averaging\.optimizer"),
        ({"averaging": {"momentum": 0.5}}, r"averaging\.momentum is no setting of fedavg"),
        ({"averaging": {"optimizer": "fedadam", "nesterov": False}}, r"averaging\.nesterov is no setting of fedadam"),
        ({"averaging": {"robust": "mean"}}, r"averaging\.robust"),
        ({"averaging": {"byzantine": 2}}, r"averaging\.byzantine is a setting of averaging\.robust"),
        ({"averaging": {"robust": "median", "byzantine": 0}}, r"averaging\.byzantine"),
        (
            {"averaging": {"robust": "median", "quorum": 2}},
            "quorum is 2, and median with averaging.byzantine 1 needs 3",
        ),
        ({"averaging": {"robust": "median"}}, "median must see each site's weights, which secure sums hide"),
        ({"averaging": {"quorum": 2}}, "quorum is 2, and a secure sum needs 3 sites"),
        ({"training": {"optimizer": "sgd", "clip_norm": None}}, "a secure sum needs a bound"),
        ({"training": {"privacy": {"epsilon": 8}}}, "sums their frames without noise"),
        (
            {"training": {"privacy": {"epsilon": 8}}, "model": {"window": {"scaling": "robust"}}},
            "the model rests on sums over their frames",
        ),
        ({"privacy": {"roster": "all"}}, r"privacy\.roster"),
        ({"averaging": {"robust": "krum", "quorum": 4}}, "krum with averaging.byzantine 1 needs 5"),
        (
            {"averaging": {"robust": "bulyan", "byzantine": 2, "quorum": 10}},
            "bulyan with averaging.byzantine 2 needs 11",
        ),
        ({"cohort": {"atlases": []}}, r"cohort\.atlases"),
        ({"cohort": {"atlases": ["aal116"], "min_t_r": 3, "max_t_r": 2}}, r"min_t_r 3 is above max_t_r 2"),
        (
            {"covariates": {"dx": {"type": "text"}}},
            r"'covariates\.dx\.type' is not a known field. Known fields: ",
        ),
        ({"covariates": {"dx": {"levels": [1, 2]}}}, r"'covariates\.dx\.levels', entry 1, is 1; .* Put it in quotes"),
        ({"covariates": {"dx": {"levels": ["a", "a"]}}}, "hold one twice"),
        ({"covariates": {"dx": {"levels": ["a", "b"], "scale": 2}}}, "Leave one of the two out"),
        (
            {"averaging": {"deadline_s": float("inf")}},
            r"deadline_s' is inf, which is not finite; expected a number",
        ),
        ({"training": {"learning_rate": float("nan")}}, r"learning_rate' is nan, which is not finite"),
        ({"training": {"learning_rate": 1e300}}, r"'training\.learning_rate' is 1e\+300; expected .* at most 1,000"),
        ({"model": {"window": {"t_r": 1e-5}}}, r"'model\.window\.t_r' is 1e-05; expected a number from 0\.01 to 20"),
        ({"covariates": {"iq": {"center": 100, "scale": 1e-320}}}, r"'covariates\.iq\.scale' is 1e-320; expected"),
        (
            {"training": {"betas": [0.9, 1]}},
            r"'training\.betas', entry 2, is 1; expected a number of at least 0",
        ),
        ({"privacy": {"max_norm": float("inf")}}, r"max_norm' is inf, which is not finite"),
        ({"harmonization": {"smooth": {"age": [18, float("inf")]}}}, r"smooth\.age', entry 2, is inf"),
        ({"model": {"mask": {"ratio": 0}}}, r"model: mask 'random' of ratio 0 hides nothing of a window"),
        (
            {"model": {"mask": {"kind": "time"}, "window": {"n_frames": 20}}},
            r"hides nothing of a window of 100 x 1",
        ),
    ],
)
def test_faults_are_named(read, changes, said):
    with pytest.raises(SettingsError, match=said):
        read(**changes)


def test_everything_that_is_wrong_with_a_file_is_told_at_once(read, tmp_path):
    """Also what is only looked at once each field is right by itself, and nothing that follows from other faults."""
    changes = {
        "titel": "x",
        "cohort": {"atlases": ["power264", "schaefer100"]},
        "model": {"width": 30, "depth": 0},
        "training": {"learning_rate": -1, "batch_size": "many"},
        "averaging": {"robust": "bulyan", "quorum": "seven", "momentum": 0.5},
        "analyses": {"targets": ["iq", "dx"], "folds": 1},
        "covariates": {"dx": {"typ": 1}},
    }

    with pytest.raises(SettingsError) as fault:
        read(**changes)

    told = str(fault.value).splitlines()
    assert all(line.startswith(f"{tmp_path / 'study.yaml'}: ") for line in told)
    for said in (
        "'titel' is not a known field. Did you mean 'title'?",
        "cohort.atlases: Atlas 'power264' is not known",
        "'model.depth' is 0; expected a whole number from 1 to 512. Correct it.",
        "heads 4 does not divide the even width 30",
        "'training.learning_rate' is -1; expected a number above 0 and at most 1,000. Correct it.",
        "'training.batch_size' is 'many'; expected a whole number from 1 to 1,000,000. Correct it.",
        "'averaging.quorum' is 'seven'; expected a whole number from 1 to 10,000. Correct it.",
        "averaging.momentum is no setting of fedavg",
        "'covariates.dx.typ' is not a known field. Known fields: center, levels, scale.",
        "'analyses.folds' is 1; expected a whole number from 3 to 1,000. Correct it.",
        "covariate 'iq' of analyses.targets has no coding",
    ):
        assert sum(said in line for line in told) == 1, said
    assert len(told) == 11


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint beside the study, of a released architecture with 100 parcels."""
    model = make_released({**DENSE, "num_brain_voxels": 100})
    state = model.state_dict()
    save_checkpoint(tmp_path / "start.safetensors", state, model.config)
    broken = {**state, "decoder.mask_token": state["decoder.mask_token"] / 0}
    save_checkpoint(tmp_path / "broken.safetensors", broken, model.config)
    return model.config


def test_a_study_takes_the_model_of_its_checkpoint(read, tmp_path, checkpoint):
    study = read(start="start.safetensors", model=None)

    assert study.model == checkpoint
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "again.yaml").write_text(study.to_yaml())
    assert load_study(tmp_path / "elsewhere" / "again.yaml") == study


def test_a_study_may_change_what_holds_no_weights(read, checkpoint):
    model = {**checkpoint.model_dump(mode="json"), "mask_ratio": 0.75}

    assert read(start="start.safetensors", model=model).model.mask_ratio == 0.75


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": None, "start": "broken.safetensors"}, CheckpointError, "holds NaN or infinite numbers in decoder"),
        ({"model": None, "start": "none.safetensors"}, CheckpointError, "no such checkpoint"),
        ({"model": None}, SettingsError, "'model' is missing"),
        ({"start": "start.safetensors"}, SettingsError, "'model' has other weights than .*Leave 'model' out"),
        ({"model": {"architecture": "bert"}}, BrainLMError, "architecture 'bert' is not known"),
        (
            {"model": None, "start": "start.safetensors", "cohort": {"atlases": ["schaefer200"]}},
            SettingsError,
            "schaefer200 has 200 parcels; the released model was made for 100",
        ),
    ],
)
def test_faults_of_a_start_are_named(read, checkpoint, changes, error, said):
    with pytest.raises(error, match=said):
        read(**changes)
