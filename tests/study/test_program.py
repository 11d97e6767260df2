"""The order of a study's questions: what follows from the same sums is the same, wherever it is reckoned."""

import builtins
import io
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from exchange.messages import HarmonizeRequest, SummarizeRequest, TrainRequest
from harmonization import ComBat, CrossValidatedRidge, Projection, SiteTable, run_pooled
from study.errors import StudyError
from study.program import DONE, Program, unlike
from study.settings import Study
from study.state import Measure
from tests.support.pooled_sites import (
    ATLASES,
    WEIGHTS,
    PooledSite,
    as_written_and_read,
    drive,
    fingerprint,
    print_questions,
    read_study,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return read_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def whole(study):
    """Questions with their states, the last state, and the sites, of a study that nothing disturbs."""
    return drive(Program(study))


def test_the_questions_come_in_order(whole):
    asked, state, _ = whole

    assert state.stage == DONE
    assert not state.arrays
    stages = [question.stage for question, _ in asked]
    assert list(dict.fromkeys(stages)) == ["measuring", "pretraining", "embedding", "harmonization"]
    assert stages == sorted(stages, key=list(dict.fromkeys(stages)).index)
    assert [question.round_number for question, _ in asked if question.round_number] == [1, 2]
    assert [question.optional for question, _ in asked if question.optional]


def test_what_is_solved_is_what_is_solved_of_pooled_tables(whole, study):
    asked, state, sites = whole
    combat = ComBat(prior="parametric")
    tables = [
        SiteTable(site.features["embedding"], study.design(study.kept).encode(site.people, site.n), site=name)
        for name, site in sites.items()
    ]
    (told,) = (
        question.request.part("embedding.harmonized")
        for question, _ in asked
        if isinstance(question.request, HarmonizeRequest) and question.request.part("embedding.harmonized")
    )

    for name, values in run_pooled(combat, tables).to_arrays().items():
        np.testing.assert_allclose(told[name], values, rtol=1e-12, atol=1e-12)
    n = sum(site.n for site in sites.values())
    loadings = run_pooled(Projection(min(16, n // 2)), tables).components.T
    probed = [
        replace(table, target=site.people["age"], loadings=loadings, seed=site.number)
        for table, site in zip(tables, sites.values(), strict=True)
    ]
    (found,) = (f for f in state.findings.found if f.measure == Measure("probe", "embedding", "harmonized", "age"))
    expected = run_pooled(CrossValidatedRidge(n_folds=3, method="combat", bootstrap=5, permutations=5), probed)
    assert found.numbers["r2"] == pytest.approx(expected.r2, rel=1e-9)
    kinds = {f.measure.kind for f in state.findings.found}
    assert {"permanova", "site", "probe", "new-site", "site_variance", "site_spread", "cca", "fusion"} <= kinds
    assert not state.findings.left_out


def test_every_state_asks_the_same_once_it_was_written_and_read(whole, study):
    """Each question by a process of its own, as it were, that has read what the one before wrote."""
    asked, last, _ = whole

    again, end, _ = drive(Program(study), between=as_written_and_read)

    assert [fingerprint(question) for question, _ in again] == [fingerprint(question) for question, _ in asked]
    assert end.model_dump_json() == last.model_dump_json()


def test_neither_disk_nor_network_nor_clock_is_asked(small, monkeypatch):
    study, asked = small

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program is pure")

    for place, name in (
        *((builtins, "open"), (io, "open"), (os, "open"), (os, "stat")),
        *((socket, "socket"), (time, "time"), (time, "monotonic")),
    ):
        monkeypatch.setattr(place, name, refuse)
    again = drive(Program(study))[0]
    monkeypatch.undo()

    assert [fingerprint(question) for question, _ in again] == [fingerprint(question) for question, _ in asked]


def test_a_run_that_goes_on_after_a_kept_round_asks_what_it_would_have_asked(whole, study):
    asked, _, _ = whole
    rounds = [(question, state) for question, state in asked if isinstance(question.request, TrainRequest)]
    (first, begun), (second, after) = rounds

    resumed = Program(study).resume(begun, 1, after.part("weights"), after.part("outer"))

    assert after.part("outer")
    assert fingerprint(Program(study).ask(resumed)) == fingerprint(second) != fingerprint(first)


def number_of(asked, what) -> int:
    """Place of the first question of which something holds."""
    return next(number for number, (question, state) in enumerate(asked) if what(question, state))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study that asks for less, and how it goes."""
    analyses = {"targets": ["age"], "folds": 3, "permutations": 0, "bootstrap": 0, "site_classification": True}
    study = read_study(tmp_path_factory.mktemp("small"), analyses=analyses)
    return study, drive(Program(study))[0]


def test_another_process_with_other_hashes_asks_the_same(small, tmp_path):
    study, asked = small
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    code = f"from {print_questions.__module__} import print_questions; print_questions({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}  # and as many threads as this one, which decide last digits

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert json.loads(out.stdout.splitlines()[-1]) == [fingerprint(question) for question, _ in asked]


@pytest.mark.parametrize(
    "where",
    [
        lambda question, state: state.stage == "moments",
        lambda question, state: state.stage == "embedding",
        lambda question, state: state.stage == "held out" and state.solving,
        lambda question, state: question.optional and state.solving,
        lambda question, state: isinstance(question.request, HarmonizeRequest),
    ],
    ids=["moments", "embedding", "held out", "association", "harmonize"],
)
def test_a_site_that_falls_silent_is_in_no_later_question_and_these_are_determined(small, where):
    study, undisturbed = small
    program, number = Program(study), number_of(undisturbed, where)

    asked, last, _ = drive(program, silent={number: "bergen"})

    before, after = undisturbed[: number + 1], asked[number + 1 :]
    assert [fingerprint(question) for question, _ in before] == [fingerprint(q) for q, _ in asked[: number + 1]]
    for question, state in after:
        assert "bergen" not in question.request.model_dump_json()
        assert fingerprint(program.ask(as_written_and_read(state))) == fingerprint(question)
    if isinstance(after[0][0].request, SummarizeRequest) and undisturbed[number][1].solving:
        assert all(job.state is None for job in after[0][0].request.jobs.values())  # sums of other people begin anew
    assert last.stage == DONE
    assert "bergen" not in last.sites


@pytest.mark.parametrize("targets", [["sex", "sex/age"], ["sex/age", "sex"]])
def test_a_target_whose_name_begins_like_another_s_is_another_measure(tmp_path, targets):
    analyses = {"targets": targets, "folds": 3, "permutations": 0, "bootstrap": 0, "category_permutations": 0}
    about = {"association": None, "covariates": {"sex/age": {"center": 50, "scale": 20}}}

    _, last, _ = drive(Program(read_study(tmp_path, analyses=analyses, **about)))

    probes = {one.measure.target: one for one in last.findings.found if one.measure.kind == "probe"}
    assert probes.keys() == set(targets)
    assert probes["sex/age"].measure.called == "probe/sex/age"
    assert "r2" in probes["sex/age"].numbers
    assert "balanced_accuracy" in probes["sex"].numbers
    assert len({Measure("probe", target=name).name for name in ("a/b", "a%2Fb", "a%252Fb", "a")}) == 4


def test_a_site_that_misses_a_round_is_asked_again(whole, study):
    program = Program(study)
    number = number_of(whole[0], lambda question, _: question.round_number == 1)
    (question, state), others = whole[0][number], [site for site in ATLASES if site != "bergen"]
    total = sum(PooledSite(0, site).answer(question.request, study)["tally/n_windows"] for site in others)
    update = {f"update/{name}": np.zeros(values.shape) for name, values in WEIGHTS.items()}

    after = program.advance(state, others, {**update, "tally/n_windows": total})

    assert "bergen" in after.sites
    assert program.ask(after).round_number == 2


def test_too_few_sites_for_the_association_cost_nothing_else(whole, study):
    asked, last, _ = whole
    number = number_of(asked, lambda question, _: question.optional)

    state = Program(study).advance(asked[number][1], ["aalborg"], {})

    assert state.stage == DONE
    assert state.findings.not_associated == "fewer sites than the quorum of 3 answered."
    assert [one.measure.name for one in state.findings.left_out] == ["association"]
    found = [one for one in last.findings.found if one.measure.of != "association"]
    assert state.findings.found[:-1] == tuple(found)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_average_that_is_not_finite_ends_the_study(whole, study):
    (state,) = (state for question, state in whole[0] if question.round_number == 2)
    weights = {f"weights/{name}": np.full_like(values, np.inf) for name, values in WEIGHTS.items()}

    with pytest.raises(StudyError, match="round 2: the averaged model is not finite"):
        Program(study).advance(state, list(ATLASES), weights)


def test_updates_that_were_summed_make_the_average_of_weights(study, whole):
    """Each weighted by its windows over the most that any site has, as sites send them under masks."""
    plain = Program(study.model_copy(update={"averaging": study.averaging.model_copy(update={"optimizer": "fedavg"})}))
    (state,) = (state for question, state in whole[0] if question.round_number == 1)
    windows = {site: about.n_windows for site, about in state.sites.items()}
    rng = np.random.default_rng(1)
    of_sites = {site: {name: rng.normal(size=np.shape(w)) for name, w in WEIGHTS.items()} for site in windows}
    total = {"tally/n_windows": np.array(float(sum(windows.values())))}
    for name, incoming in WEIGHTS.items():
        heaviest = max(windows.values())
        total[f"update/{name}"] = sum((of_sites[s][name] - incoming) * n / heaviest for s, n in windows.items())

    averaged = plain.advance(state, list(windows), total).part("weights")

    for name in WEIGHTS:
        expected = np.average([of_sites[site][name] for site in windows], axis=0, weights=list(windows.values()))
        np.testing.assert_allclose(averaged[name], expected, rtol=1e-5, atol=1e-6)
        assert averaged[name].dtype == np.float32


def test_a_site_whose_vectors_do_not_go_with_the_others_is_named(study):
    about = {name: PooledSite(number, name).about for number, name in enumerate(ATLASES)}
    other = about["espoo"].model_copy(update={"n_vector_dimensions": 5})

    left_out = unlike(study, {**about, "espoo": other})

    assert left_out == {"espoo": "its vectors 'genes' have 5 dimensions; most have 6"}
    assert unlike(study, about) == {}
