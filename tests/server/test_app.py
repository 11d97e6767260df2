"""A whole study over an in-process grid: what comes out, what stays, and how it fails."""

import contextlib
import io
import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Message
from neuroCombat import neuroCombat
from safetensors.numpy import load_file

from brainlm import load_checkpoint
from cli.main import run_command
from client.door.audit import AuditLog
from exchange.messages import HarmonizeReply, SealedGroup, TrainReply, TrainRequest, join
from harmonization import (
    ComBat,
    CrossValidatedRidge,
    Projection,
    Residualization,
    SiteTable,
    SiteVariance,
    run_pooled,
)
from server.answers import Answers
from server.app import Run
from server.errors import QuorumError
from server.journal import Journal
from server.report import write_report
from study.program import Program
from study.question import Question
from study.settings import Study
from tests.support.federation import PLAIN, STUDY, UNMEASURED, features, run_study, write_sites
from tests.support.local_grid import LocalGrid
from tests.support.pooled_sites import ATLASES, WEIGHTS, PooledSite, added, read_study
from tests.support.released import DENSE, PADDED, write_released


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_run_s_folder_holds_what_was_promised(finished_run):
    names = {path.relative_to(finished_run.folder).as_posix() for path in finished_run.folder.rglob("*")}

    assert {
        "study.yaml",
        "journal.sqlite",
        "metrics.parquet",
        "parcels.parquet",
        "reconstruction.parquet",
        "summary.json",
        "checkpoints/round-0000.safetensors",
        "checkpoints/round-0002.safetensors",
        "harmonization/embedding.harmonized.safetensors",
        "harmonization/embedding.residualized.safetensors",
    } <= names
    summary = summary_of(finished_run.folder)
    assert summary["status"] == "completed"
    assert summary["rounds"] == 2
    assert list(summary["sites"]) == ["aalborg", "bergen", "coimbra"]
    assert summary["exchange"]["messages"] == 3 * summary["exchange"]["exchanges"]
    assert np.isfinite(summary["pretraining"]["masked_r2"])
    assert {"masked_r2", "mse", "mae", "pearson_r"} <= summary["pretraining"].keys()
    baselines = summary["pretraining"]["baselines"]
    assert set(baselines) == {"parcel_mean", "time_interpolation", "gaussian", "gaussian_space_time"}
    assert baselines["gaussian_space_time"]["masked_r2"] > 0.3  # from the moments that the sites summed
    assert "Vis" in summary["pretraining"]["by_network"]
    assert "1" in summary["pretraining"]["by_horizon"]
    assert set(summary["probes"]) == {"embedding", "untrained", "connectivity"}
    assert finished_run.journal.progress().status == "completed"


def test_the_same_study_and_seed_give_the_same_checkpoints(finished_run, tmp_path, small_cohorts):
    again = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)))
    other = run_study(tmp_path / "other", LocalGrid(write_sites(tmp_path / "o", small_cohorts)), {**STUDY, "seed": 6})

    for number in range(3):
        first = finished_run.journal.checkpoint(number).read_bytes()
        assert again.checkpoint(number).read_bytes() == first
        assert other.checkpoint(number).read_bytes() != first
    first, second = (summary_of(folder) for folder in (finished_run.folder, tmp_path / "run"))
    for summary in (first, second):  # keys, and so rosters and masks, are drawn anew; what comes out is the same
        del summary["run"], summary["privacy"]["roster"], summary["privacy"]["audit_heads"]
        for site in summary["sites"].values():
            del site["rosters"]
    assert first == second


def test_an_outer_optimizer_starts_from_the_average_and_keeps_its_moments(finished_run, tmp_path, small_cohorts):
    """Two rounds with settings that make the first outer step the average itself, then add momentum."""
    averaging = {**STUDY["averaging"], "optimizer": "fedavgm", "server_learning_rate": 1.0, "nesterov": False}
    study = {**STUDY, **UNMEASURED, "averaging": averaging}
    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), study)

    plain, ours = ([load_file(j.checkpoint(n)) for n in range(3)] for j in (finished_run.journal, journal))
    moments = [load_file(journal.outer_state(n)) for n in (1, 2)]
    for name, start in plain[0].items():
        np.testing.assert_allclose(ours[1][name], plain[1][name], atol=1e-6)
        np.testing.assert_allclose(moments[0][f"momentum/{name}"], start - plain[1][name], atol=1e-6)
        # A step of m b + g: beside the average of the second round lies the momentum of the first.
        expected = plain[2][name] - 0.9 * moments[0][f"momentum/{name}"]
        np.testing.assert_allclose(ours[2][name], expected, atol=1e-4)
    assert not finished_run.journal.outer_state(1).exists()


def covariates(table: pd.DataFrame) -> np.ndarray:
    """Age and sex as the study codes them."""
    return np.column_stack([(table["age"] - 50) / 20, table["sex"] == "M"]).astype(float)


def values(table: pd.DataFrame) -> np.ndarray:
    return table.filter(regex=r"^e\d+$").to_numpy()


def test_federated_combat_equals_pooled_neurocombat(finished_run):
    raw = [features(site, "embedding") for site in finished_run.sites]
    harmonized = np.concatenate([values(features(site, "embedding.harmonized")) for site in finished_run.sites])
    pooled = pd.concat(raw)
    people = pd.DataFrame({"site": np.repeat([0, 1, 2], [len(table) for table in raw])})
    # neuroCombat reads covariates as float32, in which coded ages are not exact: a tenth of a year is, times ten.
    people["age"], people["sex"] = (pooled["age"].to_numpy() * 10).round(), pooled["sex"].to_numpy()
    with contextlib.redirect_stdout(io.StringIO()):
        expected = neuroCombat(values(pooled).T, people, "site", categorical_cols=["sex"], continuous_cols=["age"])[
            "data"
        ].T

    np.testing.assert_allclose(harmonized, expected, rtol=0, atol=1e-9)


def test_the_federated_path_equals_run_pooled(finished_run):
    raw = [features(site, "embedding") for site in finished_run.sites]
    harmonized = [features(site, "embedding.harmonized") for site in finished_run.sites]
    design = [covariates(table) for table in raw]

    # ComBat
    model = run_pooled(ComBat(), [SiteTable(values(t), c) for t, c in zip(raw, design, strict=True)])
    for table, c, site in zip(raw, design, harmonized, strict=True):
        np.testing.assert_allclose(model.harmonize(values(table), c), values(site), rtol=0, atol=1e-9)
    # projection and residualization of what was harmonized
    n = sum(len(table) for table in raw)
    projection = run_pooled(Projection(min(16, n // 2)), [SiteTable(values(table)) for table in harmonized])
    removed = [
        np.column_stack([covariates(t), (t["mean_fd"] - 0.2) / 0.1, (tsnr(site) - 60) / 30])
        for t, site in zip(raw, finished_run.sites, strict=True)
    ]
    scores = [projection.project(values(table)) for table in harmonized]
    residualization = run_pooled(Residualization(), [SiteTable(s, c) for s, c in zip(scores, removed, strict=True)])
    for score, c, site in zip(scores, removed, finished_run.sites, strict=True):
        np.testing.assert_allclose(score, values(features(site, "embedding.projected")), rtol=0, atol=1e-9)
        np.testing.assert_allclose(
            residualization.residualize(score, c), values(features(site, "embedding.residualized")), rtol=0, atol=1e-9
        )
    # the numbers of the summary
    summary = summary_of(finished_run.folder)
    variance = run_pooled(SiteVariance(), [SiteTable(values(table)) for table in raw]).mean
    assert summary["harmonization"]["site_effect"]["embedding"]["raw"]["eta_squared"] == pytest.approx(
        variance, rel=1e-9
    )
    loadings = run_pooled(Projection(16), [SiteTable(values(table)) for table in raw]).components.T
    seeds = [private_seed(site) for site in finished_run.sites]
    tables = [
        SiteTable(values(t), c, t["age"].to_numpy(), loadings=loadings, seed=seed)
        for t, c, seed in zip(raw, design, seeds, strict=True)
    ]
    for variant, method in (("raw", "none"), ("harmonized", "combat")):
        expected = run_pooled(CrossValidatedRidge(n_folds=3, method=method), tables)
        assert summary["probes"]["embedding"]["age"][variant]["r2"] == pytest.approx(expected.r2, rel=1e-9)


def tsnr(site) -> pd.Series:
    return features(site, "embedding")["tsnr"]


def private_seed(site) -> int:
    from base.seeding import derive_seed

    return derive_seed((site.parent / "state" / "private_seed").read_text(), "small", "folds")


def test_the_audit_logs_list_every_reply(finished_run):
    replies = [message for message in finished_run.grid.received if message.has_content()]
    released = [
        event
        for site in finished_run.sites
        for event in AuditLog(site.parent / "state" / "audit.jsonl").read()
        if event["event"] == "release"
    ]
    assert len(released) == len(replies)
    assert sum(event["bytes"] for event in released) == summary_of(finished_run.folder)["exchange"]["bytes_up"]


def test_artefacts_name_what_made_them(finished_run):
    about = json.loads(
        (finished_run.sites[0].parent / "state" / "studies" / "small" / "embedding.residualized.json").read_text()
    )["about"]

    assert about["recipe"] == "rsfmri_brainlm_segments_v1"
    assert about["preprocessing"] == "simulated"
    assert [step["transform"] for step in about["transforms"]] == ["combat", "projection", "residualization"]
    assert all(len(step["model_sha256"]) == 64 for step in about["transforms"])


def test_a_site_that_misses_a_round_comes_back(tmp_path, small_cohorts):
    def late(node: int, message: Message) -> bool | None:
        return False if node == 2 and message.metadata.message_type == "train" and first_round(message) else None

    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts), late)
    journal = run_study(tmp_path / "run", grid, {**PLAIN, **UNMEASURED})

    trained = journal.table("metrics").query("name == 'loss' and site != 'all'").groupby("round")["site"].apply(list)
    assert trained[1] == ["aalborg", "coimbra"]
    assert trained[2] == ["aalborg", "bergen", "coimbra"]
    (missed,) = summary_of(tmp_path / "run")["absences"]
    assert missed == {
        "site": "bergen",
        "stage": "pretraining",
        "rounds": [1],
        "why": "no reply",
        "for_good": False,
    }
    assert journal.progress().status == "completed"


def first_round(message: Message) -> bool:
    return json.loads(message.content["header"]["json"])["round_number"] == 1


def bergen_answers_one_sum() -> Callable[[int, Message], bool | None]:
    """Let the second site answer a question for sums, and no further one."""
    answered = []

    def dies(node: int, message: Message) -> bool | None:
        if node != 2 or message.metadata.message_type != "query.summarize":
            return None
        answered.append(node)
        return None if len(answered) == 1 else False

    return dies


def test_a_site_that_falls_silent_among_the_sums_is_left_out_of_all_of_them(tmp_path, small_cohorts):
    """Sums before and after would otherwise be over different people: the others begin again without it."""
    sites = write_sites(tmp_path / "s", small_cohorts)
    journal = run_study(tmp_path / "run", LocalGrid(sites, bergen_answers_one_sum()), PLAIN)
    summary = summary_of(tmp_path / "run")
    without = run_study(
        tmp_path / "two", LocalGrid(write_sites(tmp_path / "t", [small_cohorts[0], small_cohorts[2]])), PLAIN
    )

    assert summary["status"] == "completed"
    assert summary["left_out"] == "bergen"
    (absent,) = summary["absences"]
    assert (absent["stage"], absent["why"], absent["for_good"]) == ("harmonization", "no reply", True)
    assert list(summary["sites"]) == ["aalborg", "coimbra"]
    begun, alone = (load_checkpoint(one.checkpoint(0))[0].state_dict() for one in (journal, without))
    assert all(torch.equal(values, alone[name]) for name, values in begun.items())
    n_tested = summary["probes"]["connectivity"]["age"]["raw"]["n"]
    assert n_tested == summary_of(tmp_path / "two")["probes"]["connectivity"]["age"]["raw"]["n"] == 21 + 11
    for variant in ("raw", "harmonized"):
        left, right = (
            summary_of(tmp_path / name)["probes"]["connectivity"]["age"][variant]["r2"] for name in ("run", "two")
        )
        assert left == pytest.approx(right, abs=1e-9)


def test_a_run_below_its_quorum_fails_with_the_reason(tmp_path, small_cohorts):
    def gone(node: int, message: Message) -> bool | None:
        return False if node > 1 and message.metadata.message_type == "train" else None

    with pytest.raises(QuorumError):
        run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts), gone), PLAIN)

    progress = Journal(tmp_path / "run").progress()
    assert progress.status == "failed"
    assert "pretraining, round 1: 1 of 3 sites answered, the quorum is 2. bergen: no reply" in progress.reason
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["reason"]) == ("failed", progress.reason)


def test_a_diverging_site_is_named_by_its_code(tmp_path, small_cohorts):
    study = {**PLAIN, "training": {**PLAIN["training"], "optimizer": "sgd", "learning_rate": 1000, "clip_norm": None}}

    with pytest.raises(QuorumError, match=r"aalborg: site\.cannot-answer"):
        run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), study)


def test_weights_that_are_not_finite_leave_their_site_out(tmp_path, small_cohorts):
    def spoil(node, message):
        if node != 1 or message.metadata.message_type != "train":
            return None
        request = TrainRequest.from_records(message.content)
        weights = {name: np.full_like(values, np.nan) for name, values in request.part("weights").items()}
        tally = {"n_windows": np.array(5), "n_losses": np.array(5), "loss": np.array(5.0)}
        reply = TrainReply(arrays=join(weights=weights, tally=tally))
        return Message(reply.to_records(), reply_to=message)

    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts), spoil)
    journal = run_study(tmp_path / "run", grid, {**PLAIN, **UNMEASURED})

    assert journal.facts()["status"] == "completed"
    spoilt = journal.table("outcomes").query("site == 'aalborg' and outcome == 'protocol.unreadable'")
    assert len(spoilt) == STUDY["averaging"]["rounds"]


def test_a_study_without_harmonization_measures_and_residualizes_only(tmp_path, small_cohorts):
    study = {**STUDY, "harmonization": {"method": "none", "residualize": ["age", "site"]}}
    sites = write_sites(tmp_path / "s", small_cohorts)

    run_study(tmp_path / "run", LocalGrid(sites), study)

    summary = summary_of(tmp_path / "run")
    assert set(summary["harmonization"]["site_effect"]["embedding"]) == {"raw"}
    assert not (sites[0].parent / "state" / "studies" / "small" / "embedding.harmonized.parquet").exists()
    residuals = np.concatenate([values(features(site, "embedding.residualized")) for site in sites])
    ages = np.concatenate([(lambda a: a - a.mean())(features(site, "embedding")["age"].to_numpy()) for site in sites])
    np.testing.assert_allclose(ages @ residuals, 0, atol=1e-6)


@pytest.mark.parametrize("policy", [{"analyses": ["pretraining", "embedding"]}, {"studies": ["another"]}])
def test_a_policy_that_forbids_any_part_forbids_the_study_at_once(tmp_path, small_cohorts, policy):
    with pytest.raises(QuorumError, match=r"describe: 0 of 3 sites answered.*policy\."):
        run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts, **policy)))


@pytest.mark.parametrize("content", [DENSE, PADDED], ids=["dense", "padded"])
def test_a_study_goes_on_from_a_released_checkpoint(tmp_path, small_cohorts, content):
    sizes = {"num_brain_voxels": 100, "num_timepoints_per_voxel": 24, "image_size": 104, "patch_size": 8}
    write_released(tmp_path / "released", {**content, **sizes})
    (tmp_path / "run").mkdir()
    start = tmp_path / "run" / "start.safetensors"
    assert run_command(["model", "import", str(tmp_path / "released"), str(start), "--tr", "2"]) == 0
    begun, _ = load_checkpoint(start)
    study = {name: value for name, value in STUDY.items() if name != "model"}
    study |= {**UNMEASURED, "start": "start.safetensors", "averaging": {**STUDY["averaging"], "rounds": 1}}

    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), study)

    (first, _), (last, about) = (load_checkpoint(journal.checkpoint(number)) for number in (0, 1))
    assert first.config == last.config == begun.config
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in begun.state_dict().items())
    moved = {name for name, value in last.state_dict().items() if not torch.allclose(value, first.state_dict()[name])}
    fixed = {name for name in last.state_dict() if name.endswith(("position_embeddings", "pos_embed"))}
    unused = {f"decoder.decoder_pred.{part}" for part in ("weight", "bias")} if content is DENSE else set()
    assert moved >= {name for name in last.state_dict() if name.endswith("weight")} - unused
    assert not moved & (fixed | unused)
    assert about["start"]["file"] == "start.safetensors"
    assert "CC-BY-NC-ND" in about["licence"]
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "completed"
    assert np.isfinite(summary["pretraining"]["masked_r2_start"])
    assert "masked_r2_untrained" not in summary["pretraining"]
    report = write_report(tmp_path / "run").read_text()
    assert f"of architecture {content['model_type']}" in report
    assert "came from an earlier checkpoint" in report


@pytest.mark.parametrize(
    "model",
    [
        {"residual": "gaussian"},
        {"objective": "latent", "mask": {"kind": "mixed", "ratio": 0.5, "weights": {"parcel": 1, "future": 1}}},
        {"window": {"t_r": 2.0, "n_frames": 32, "patch_frames": 16, "temporal": "adaptive"}, "parcels_per_token": 4},
    ],
    ids=["linear path", "latent", "adaptive"],
)
def test_every_kind_of_model_is_trained_and_embeds(tmp_path, small_cohorts, model):
    averaging, harmonization = {**STUDY["averaging"], "rounds": 1}, UNMEASURED["harmonization"]
    study = {**STUDY, "model": {**STUDY["model"], **model}, "averaging": averaging, "harmonization": harmonization}

    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "sites", small_cohorts)), study)

    found = json.loads((journal.folder / "summary.json").read_text())
    assert found["status"] == "completed"
    assert np.isfinite(found["pretraining"]["masked_r2"])
    assert ("gaussian" in found["pretraining"]["baselines"]) == (model.get("window") is None)
    if "residual" in model:  # it begins as the space-time predictor, and one round cannot change that much
        beside = found["pretraining"]["baselines"]["gaussian_space_time"]["masked_r2"]
        assert found["pretraining"]["masked_r2_untrained"] == pytest.approx(beside, abs=0.02)
    assert "age" in found["probes"]["embedding"]


class PooledInquiry:
    """Of sites whose tables lie at hand, of which too few answer about the association."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.members = {name: PooledSite(number, name) for number, name in enumerate(ATLASES)}

    @property
    def presence(self) -> "PooledInquiry":
        return self

    def ask(self, question: Question) -> Answers:
        if any(name.startswith("association/") for name in question.expected):
            raise QuorumError("harmonization: 1 of 5 sites answered, the quorum is 3. bergen: no reply.")
        total = added(self.members, question.request, self.study)
        return Answers(
            dict.fromkeys(self.members, HarmonizeReply(sealed=[SealedGroup(sites=[], layout={})])), total, masked=True
        )

    def keep(self, sites) -> None:
        assert list(sites) == list(self.members)


def test_too_few_sites_for_the_association_cost_the_run_nothing_else_and_are_named(tmp_path):
    study = read_study(tmp_path, analyses={"targets": ["age"], "folds": 3, "permutations": 0, "bootstrap": 0})
    inquiry, journal = PooledInquiry(study), Journal(tmp_path)
    run = Run(Program(study), inquiry, journal)
    state = run.program.begin({name: site.about for name, site in inquiry.members.items()}, WEIGHTS)

    for stage in ("measuring", "pretraining", "embedding", "harmonization"):
        state = run.through(stage, state)

    assert run.program.ask(state) is None
    assert "embedding.residualized" in state.sizes
    assert state.findings.not_associated == "fewer sites than the quorum of 3 answered."
    assert "bergen: no reply" in list(journal.table("notes")["text"])[-1]
