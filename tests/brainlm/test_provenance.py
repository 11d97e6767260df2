import shutil
from dataclasses import replace

import pytest

from base.errors import SettingsError
from brainlm import embed, load_checkpoint, save_checkpoint
from brainlm.errors import CheckpointError
from brainlm.provenance import atlases_of, check_cohort, membership_of, trainings_of
from brainlm.windows import usable_recordings
from client.frames import split_site
from client.site import load_site
from cohorts import Cohort, load_atlas
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from study.settings import load_study

SINCE = ("atlases", "sites", "t_r", "software")
"""What headers of earlier versions lack."""


@pytest.fixture
def checkpoint(finished_run):
    return finished_run.journal.checkpoint(2)


@pytest.fixture
def trained(checkpoint):
    """The model, what is said of it, and its window."""
    model, about = load_checkpoint(checkpoint)
    return model, about, model.config.window


@pytest.fixture
def cohort(small_cohorts, tmp_path) -> Cohort:
    """A copy of the first site's, to change."""
    return Cohort.open(shutil.copytree(small_cohorts[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def other_atlas(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("other")
    return Cohort.open(
        simulate_cohorts(folder / "c", simulated_hospitals(1, 4, minutes=2.2), atlas="aal116", seed=3)[0]
    )


def renamed(cohort: Cohort, name: str) -> Cohort:
    path = cohort.path / "cohort.yaml"
    path.write_text(path.read_text().replace(f"name: {cohort.name}", f"name: {name}"))
    return Cohort.open(cohort.path)


def test_a_checkpoint_says_where_it_comes_from_and_names_no_participant(checkpoint, finished_run, small_cohorts):
    _, about = load_checkpoint(checkpoint)
    (training,) = trainings_of(about)

    assert (training.study, training.round, training.rounds, training.holdout) == ("small", 2, 2, 0.2)
    assert training.atlases == {"schaefer100": load_atlas("schaefer100").content_hash}
    assert training.t_r == (0.3, 5.0)
    assert set(training.software) == {"fedbrainlm", "torch"}
    for path in small_cohorts:
        cohort = Cohort.open(path)
        told = training.sites[cohort.name]
        assert (told.participants, told.recordings) == (cohort.recordings["participant_id"].nunique(), len(cohort))
        assert (told.atlas, told.preprocessing) == ("schaefer100", "simulated")
        for person in cohort.recordings["participant_id"]:
            assert person.encode() not in checkpoint.read_bytes()


def test_who_was_trained_on_is_what_the_sites_themselves_decided(trained, finished_run):
    _, about, window = trained
    for path in finished_run.sites:
        site = load_site(path)
        trained, held_out = split_site(site, window, 0.2, 5)

        members = membership_of(about, site.cohort, window, site.name)

        assert (members.trained, members.held_out, members.others) == (trained, held_out, [])
        assert f"{len(held_out)} were held out and {len(trained)} trained on" in members.said


def test_a_cohort_under_another_name_is_taken_for_new_with_a_word_until_it_is_named(trained, cohort):
    _, about, window = trained
    stranger = renamed(cohort, "northshire")

    members = membership_of(about, stranger, window, "northshire")
    told = membership_of(about, stranger, window, "aalborg")

    assert (members.trained, members.held_out) == ([], [])
    assert "northshire is no site of the training (aalborg, bergen, coimbra)" in members.said
    assert "aalborg had as many participants and recordings" in members.said
    assert told == membership_of(about, cohort, window, "aalborg")
    assert told.trained


def test_of_a_cohort_that_changed_nobody_can_tell(checkpoint, cohort):
    model, about = load_checkpoint(checkpoint)
    cohort.forget(cohort.recordings["recording_id"].iloc[0])
    cohort.save()

    members = membership_of(about, cohort, model.config.window, "aalborg")

    assert members.cannot_be_known
    assert (members.trained, members.held_out) == ([], [])
    assert "had 21 participants and 21 recordings in study 'small', and has 20 and 20 now" in members.said


def test_an_earlier_checkpoint_is_read_and_what_it_lacks_is_not_known(trained, cohort, other_atlas):
    model, about, window = trained
    model.about = old = {name: value for name, value in about.items() if name not in SINCE}

    assumed = membership_of(old, cohort, window, "aalborg")

    assert atlases_of(old) is None
    assert "does not say at which sites it was trained. If aalborg was one of them" in assumed.said
    assert assumed.trained == membership_of(about, cohort, window, "aalborg").trained
    assert len(membership_of(old, cohort, window, "aalborg", holdout=0.5).held_out) == 10
    assert len(embed(model, other_atlas)) == other_atlas.recordings["participant_id"].nunique()
    nothing = membership_of({"origin": {}, "licence": "x"}, cohort, window, "aalborg")
    assert nothing.others == list(usable_recordings(cohort, window))
    assert "is not known" in nothing.said


def test_whoever_any_of_the_studies_trained_on_is_trained_on(trained, cohort):
    _, first, window = trained
    second = {**first, "study": "second", "seed": 77, "start": {"file": "round-0002.safetensors", **first}}
    alone = {**second, "start": {}}

    both, last, before = (membership_of(about, cohort, window, "aalborg") for about in (second, alone, first))

    assert [training.study for training in trainings_of(second)] == ["second", "small"]
    assert set(both.trained) == set(last.trained) | set(before.trained)
    assert set(last.held_out) & set(before.trained)  # or the test would show nothing
    assert "study 'second' and 'small'" in both.said


def test_another_atlas_is_refused_unless_it_is_asked_for(checkpoint, other_atlas, cohort):
    model, _ = load_checkpoint(checkpoint)

    with pytest.raises(
        CheckpointError, match=r"cohort \w+: has atlas aal116, and the model was trained in schaefer100"
    ):
        embed(model, other_atlas)
    assert len(embed(model, other_atlas, other_atlas=True)) == other_atlas.recordings["participant_id"].nunique()
    check_cohort(model, cohort, other_atlas=False, remedy="")


def test_the_same_parcels_under_another_name_are_the_same_atlas_and_other_parcels_of_the_name_are_not(
    checkpoint, cohort
):
    model, _ = load_checkpoint(checkpoint)
    atlas = cohort.atlas
    cohort.atlas = replace(atlas, name="our-parcels")
    check_cohort(model, cohort, other_atlas=False, remedy="")

    cohort.atlas = replace(atlas, coordinates=atlas.coordinates + 1)
    with pytest.raises(CheckpointError, match="has atlas schaefer100 with other parcels"):
        check_cohort(model, cohort, other_atlas=False, remedy="")


def test_recordings_without_their_units_are_refused_where_the_scaling_needs_them(checkpoint, cohort):
    model, _ = load_checkpoint(checkpoint)
    robust = model.config.window.model_copy(update={"scaling": "robust"})
    model.config = model.config.model_copy(update={"window": robust})
    cohort.about = cohort.about.model_copy(update={"scaling": "zscore"})

    with pytest.raises(CheckpointError, match="were stored as zscore"):
        check_cohort(model, cohort, other_atlas=False, remedy="")


def test_a_study_starts_from_a_model_of_another_atlas_only_where_it_says_so(checkpoint, finished_run, tmp_path):
    text = (finished_run.folder / "study.yaml").read_text().replace("start: null", f"start: {checkpoint}")
    other = text.replace("- schaefer100", "- aal116")
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert load_study(path).start == str(checkpoint)

    path.write_text(other)
    with pytest.raises(SettingsError, match=r"cohort\.atlases: has atlas aal116.*set start_other_atlases: true"):
        load_study(path)
    path.write_text(other.replace("start_other_atlases: false", "start_other_atlases: true"))
    assert load_study(path).start_other_atlases


def test_a_header_that_others_wrote_is_refused_in_a_sentence(checkpoint, tmp_path):
    model, about = load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="header holds another 'seed'"):
        trainings_of({**about, "seed": "many"})
    save_checkpoint(tmp_path / "m", model.state_dict(), model.config, ["no", "mapping"])
    with pytest.raises(CheckpointError, match="holds no BrainLM settings"):
        load_checkpoint(tmp_path / "m")
