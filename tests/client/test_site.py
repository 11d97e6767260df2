import stat

import pytest
import yaml
from flwr.app import Context, RecordDict

from client.site import SIMULATED_SITES, find_site
from cohorts.errors import CohortError
from exchange.refusals import Refusal, RefusalCode
from tests.support.local_grid import write_site


def context(node_config: dict[str, object], run_config: dict[str, object] | None = None) -> Context:
    return Context(1, 1, node_config, RecordDict(), run_config or {})


def test_a_deployed_site_reads_its_own_disk(tmp_path, small_cohorts):
    path = write_site(tmp_path / "a", "aalborg", small_cohorts[0], min_participants=7)

    site = find_site(context({"site-config": str(path)}, {"site-config": "/elsewhere", "min-participants": 1}))

    assert (site.name, site.policy.min_participants, len(site.cohort)) == ("aalborg", 7, 21)
    assert site.state == tmp_path / "a" / "state"


def test_simulated_sites_are_numbered_by_name(tmp_path, small_cohorts, monkeypatch):
    for cohort in small_cohorts[::-1]:
        write_site(tmp_path / cohort.name, cohort.name, cohort)
    monkeypatch.setenv(SIMULATED_SITES, str(tmp_path))

    names = [find_site(context({"partition-id": number})).name for number in range(3)]

    assert names == ["aalborg", "bergen", "coimbra"]


def test_nothing_in_a_message_can_name_a_site(tmp_path, small_cohorts, monkeypatch):
    """Neither run config nor a partition number alone leads anywhere: only node config and environment do."""
    path = write_site(tmp_path / "a", "aalborg", small_cohorts[0])
    monkeypatch.delenv(SIMULATED_SITES, raising=False)

    for node_config in ({}, {"partition-id": 0}):
        with pytest.raises(Refusal) as refused:
            find_site(context(node_config, {"site-config": str(path), SIMULATED_SITES: str(tmp_path)}))
        assert refused.value.code is RefusalCode.SETUP


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "name"),
        ({"cohort": None}, "cohort"),
        ({"polcy": {}}, "Did you mean 'policy'"),
        ({"threads": 0}, "threads"),
        ({"devices": "all"}, "devices"),
        ({"device": "cuda:1", "devices": 2}, "device cuda:1 is one GPU, and devices is 2"),
    ],
)
def test_a_broken_site_yaml_is_explained_in_the_site_s_own_words(tmp_path, small_cohorts, change, said):
    path = write_site(tmp_path / "a", "aalborg", small_cohorts[0])
    content = {**yaml.safe_load(path.read_text()), **change}
    path.write_text(yaml.safe_dump(content))

    with pytest.raises(Refusal, match=said) as refused:
        find_site(context({"site-config": str(path)}))

    assert refused.value.code is RefusalCode.SETUP


def test_the_private_seed_is_secret_and_stays(tmp_path, small_cohorts):
    site = find_site(context({"site-config": str(write_site(tmp_path / "a", "aalborg", small_cohorts[0]))}))

    first = site.private_seed("study", "folds")

    assert stat.S_IMODE((site.state / "private_seed").stat().st_mode) == 0o600
    assert site.private_seed("study", "folds") == first
    assert site.private_seed("study", "other") != first
    other = find_site(context({"site-config": str(write_site(tmp_path / "b", "aalborg", small_cohorts[0]))}))
    assert other.private_seed("study", "folds") != first


def test_the_name_of_a_study_cannot_climb_out_of_the_state_folder(tmp_path, small_cohorts):
    site = find_site(context({"site-config": str(write_site(tmp_path / "a", "aalborg", small_cohorts[0]))}))

    with pytest.raises(CohortError, match="expected letters"):
        site.folder_of("../../etc")


def test_gpus_that_are_not_there_are_a_fault_of_the_set_up(tmp_path, small_cohorts):
    path = write_site(tmp_path / "a", "aalborg", small_cohorts[0])
    path.write_text(path.read_text() + "device: cuda\ndevices: 64\n")

    with pytest.raises(Refusal, match=RefusalCode.SETUP) as refused:
        _ = find_site(context({"site-config": str(path)})).devices
    assert "devices is 64" in refused.value.detail
