import numpy as np
import pytest

from brainlm.evaluation import MODEL, ReconstructionSums
from cohorts import load_atlas
from exchange.aggregation import add_replies
from exchange.messages import EmbedReply, EmbedRequest, Group, join
from server.reconstruction import read_table, summarize_reconstruction, sums_of, write_reconstruction
from study.settings import Study
from tests.support.federation import STUDY
from tests.support.wire import be_in_run


def sums(seed: int, n_parcels: int) -> ReconstructionSums:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n_parcels, 50))
    terms = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y, (x - y) ** 2, abs(x - y)])
    horizons = np.zeros((8, 41))
    horizons[:, 2] = terms.sum(axis=(1, 2))
    return ReconstructionSums(terms.sum(axis=2), horizons)


def reply(seed: int, atlas: str) -> EmbedReply:
    be_in_run(1)
    n_parcels = load_atlas(atlas).n_parcels
    predictors = {f"{atlas}/{name}": sums(seed + number, n_parcels).to_arrays() for number, name in enumerate(NAMES)}
    return EmbedReply(arrays=join(baselines=join(**predictors)))


NAMES = ("flat", "bent")


def test_baselines_add_over_sites_of_the_same_atlas():
    replies = {"a": reply(1, "schaefer100"), "b": reply(5, "schaefer100"), "c": reply(9, "aal116")}
    groups = [Group(parts=["baselines/schaefer100"], sites=["a", "b"]), Group(parts=["baselines/aal116"], sites=["c"])]
    request = EmbedRequest(study="s", groups=groups, model={}, recipe="r", holdout=0.2, seed=0)

    added = sums_of(add_replies(request, replies))

    assert set(added) == set(NAMES)
    assert set(added["flat"]) == {"schaefer100", "aal116"}
    np.testing.assert_allclose(added["bent"]["schaefer100"].parcels, sums(2, 100).parcels + sums(6, 100).parcels)


def test_scores_are_over_all_atlases_and_networks_of_one_name(tmp_path):
    atlases = ("schaefer100", "schaefer200", "aal116")
    study = Study.model_validate({**STUDY, "cohort": {"atlases": atlases}})
    by_atlas = {name: sums(seed, load_atlas(name).n_parcels) for seed, name in enumerate(atlases)}

    write_reconstruction(study, tmp_path, {MODEL: by_atlas, "flat": by_atlas})

    found = summarize_reconstruction(read_table(tmp_path / "reconstruction.parquet"))
    total = sum(of_atlas.parcels.sum(axis=1) for of_atlas in by_atlas.values())
    assert found["baselines"]["flat"]["mae"] == pytest.approx(total[7] / total[0])
    assert found["by_horizon"] == {"2": pytest.approx(found["baselines"]["flat"])}
    visual = sum(
        by_atlas[name].parcels[:, np.array(load_atlas(name).networks) == "Vis"].sum(axis=1) for name in atlases[:2]
    )
    assert found["by_network"]["Vis"]["mse"] == pytest.approx(visual[6] / visual[0])
    assert len(found["by_network"]) == 7
