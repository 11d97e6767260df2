"""A method and a probe of another package, one file each, are there like ours, and no file of ours names them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from client.door.describing import policy_objections
from client.door.ledger import EMBEDDING, EVALUATION, LACKING, PRETRAINING
from client.door.policy import Policy, every_analysis, must_be_named
from exchange.messages import Job, TableSpec
from exchange.refusals import Refusal, RefusalCode
from harmonization import CrossValidatedRidge, HarmonizationError, Harmonizer
from harmonization.core import registry
from study.comparing import CONTROL, HARMONIZED, RAW
from study.harmonizing import PROJECTED
from tests.support.pooled_sites import read_study

ROOT = Path(__file__).parents[2]
METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harmonization import Harmonizer, State
from harmonization.core.declared import everybody
from harmonization.core.protocol import Array
from harmonization.core.registry import register
from harmonization.methods.harmonizer import Effect


@dataclass(frozen=True)
class Middle(State):
    mean: Array

    done: ClassVar[bool] = True


@dataclass(frozen=True)
class Shift(Effect):
    shift: Array


@register
@dataclass(frozen=True)
class SiteMeans(Harmonizer):
    """Brings the mean of every site to the mean of all."""

    name: ClassVar[str] = "site_means"
    states: ClassVar[tuple[type[State], ...]] = (Middle,)
    title: ClassVar[str] = "means alone"
    described: ClassVar[str] = "centring of every site"
    references: ClassVar[tuple[str, ...]] = ("Doe J. Means of sites. 2020;1:1-2.",)

    def summarize(self, table, state):
        return {"n": np.array(float(table.n)), "x": table.features.sum(axis=0)}

    def sends(self, widths, state):
        return {"n": everybody(), "x": everybody(widths.features)}

    def solve(self, total, state):
        return Middle(total["x"] / total["n"])

    def effect_shapes(self, model, n_features):
        return {"shift": (n_features,)}

    def estimate(self, model, table):
        return Shift(table.features.mean(axis=0) - model.mean)

    def apply(self, model, table, effect):
        return table.features - effect.shift
'''
PROBE = '''
from dataclasses import dataclass
from typing import ClassVar

from harmonization import CrossValidatedRidge
from harmonization.core.registry import register


@register
@dataclass(frozen=True)
class FirmRidge(CrossValidatedRidge):
    """Ridge regression of one strong penalty."""

    alphas: tuple[float, ...] = (10.0,)

    name: ClassVar[str] = "firm_ridge"
    title: ClassVar[str] = "firm ridge"
'''
STUDY = """
from pathlib import Path


from base.errors import FedBrainLMError
from docs.settings_page import settings_page
from cli.run import _write_site
from client.site import load_site
from cohorts import Cohort
from runtime.fab import print_study
from server.report.data import RunData
from server.report.methods import methods_paragraph
from server.report import write_report
from study.settings import load_study
from tests.support.federation import STUDY, run_study, simulate_small_cohorts, write_sites
from tests.support.local_grid import LocalGrid

here = Path.cwd()
study = {**STUDY, "harmonization": {"method": "site_means"}}
study["averaging"] = {**STUDY["averaging"], "rounds": 1}
study["analyses"] = {**STUDY["analyses"], "number_probe": "firm_ridge", "compare": ["combat"], "permutations": 0}
cohorts = simulate_small_cohorts(here / "cohorts")
try:
    run_study(here / "refused", LocalGrid(write_sites(here / "unnamed", cohorts, analyses=["*"])), study)
except FedBrainLMError as error:
    print("REFUSED", error)
_write_site(load_study(here / "refused" / "study.yaml"), Cohort.open(cohorts[0]), here / "simulated")
load_site(here / "simulated" / "site.yaml").policy.permit("small", ["site_means", "firm_ridge"])  # all is at hand
named = ["*", "site_means", "firm_ridge"]
run_study(here / "run", LocalGrid(write_sites(here / "sites", cohorts, analyses=named)), study)
paragraph, references = methods_paragraph(RunData(here / "run"))
print("METHODS", paragraph, references)
print("REPORT", write_report(here / "run").read_text())
print("SETTINGS", settings_page())
print("APPROVAL")
print_study(load_study(here / "run" / "study.yaml"))
"""


def in_another_process(plugin: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{plugin}:{ROOT}", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """A package that is installed: two files, and the entry points that lead to them."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "site_means.py").write_text(METHOD)
    (folder / "firm_ridge.py").write_text(PROBE)
    about = folder / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    points = "[fedbrainlm.analyses]\nsite_means = site_means\nfirm_ridge = firm_ridge:FirmRidge\n"
    (about / "entry_points.txt").write_text(points)
    return folder


def test_study_policy_and_report_know_them(plugin, tmp_path):
    ended = in_another_process(plugin, tmp_path / "here", "-c", textwrap.dedent(STUDY))

    said = ended.stdout
    assert ended.returncode == 0, ended.stderr
    refused, _, rest = said.partition("METHODS")
    assert "REFUSED" in refused
    assert "policy.analysis-not-allowed" in refused  # "*" stands for ours alone
    paragraph, _, rest = rest.partition("REPORT")
    assert "harmonized by centring of every site [" in paragraph
    assert "Doe J. Means of sites. 2020;1:1-2." in paragraph
    report, _, rest = rest.partition("SETTINGS")
    assert "centring of every site" in report
    settings, _, approval = rest.partition("APPROVAL")
    assert "site_means" in settings
    assert "firm_ridge" in settings
    assert "site_means, firm_ridge" in approval or "firm_ridge, site_means" in approval


def test_the_common_tests_try_them(plugin, tmp_path):
    tests = [str(ROOT / "tests/harmonization/test_pooled.py"), "-p", "no:cacheprovider", "--rootdir", str(ROOT)]

    ended = in_another_process(plugin, tmp_path / "here", "-m", "pytest", *tests, "-k", "site_means or firm_ridge")

    assert ended.returncode == 0, ended.stdout
    assert "3 passed" in ended.stdout  # any order of both, and of the method's rows


@pytest.mark.parametrize("first", ["site_means", "firm_ridge", "harmonization.core.registry", "study.settings"])
def test_they_are_there_and_others_whatever_is_imported_first(plugin, tmp_path, first):
    ask = (
        "from harmonization.core.registry import is_ours; print(*map(is_ours, ['combat', 'site_means', 'firm_ridge']))"
    )

    ended = in_another_process(plugin, tmp_path / "here", "-c", f"import {first}; {ask}")

    assert ended.stdout == "True False False\n", ended.stderr


def test_one_that_claims_a_module_of_ours_is_another_s_all_the_same(monkeypatch):
    monkeypatch.setattr(registry, "ANALYSES", dict(registry.ANALYSES))
    liar = type("Liar", (CrossValidatedRidge,), {"name": "liar", "__module__": "harmonization.probes.liar"})

    assert not registry.is_ours(registry.register(liar).name)
    assert must_be_named("liar")
    with pytest.raises(Refusal, match=r"'liar' is not in policy\.analyses"):
        Policy(studies=("*",)).permit("any", ["liar"])


@pytest.mark.parametrize("name", [*sorted(registry.TAKEN), "*", "ridge2", "a/b", "a.b", "", "Ridge", 3, None, "a" * 65])
def test_a_name_that_means_something_else_or_cannot_travel_is_refused(name):
    with pytest.raises(HarmonizationError, match="expected 1 to 64 letters a-z and '_'"):
        registry.register(type("Other", (CrossValidatedRidge,), {"name": name}))


def test_the_names_that_are_taken_are_those_of_policies_transforms_and_feature_sets():
    others = {RAW, HARMONIZED, CONTROL, PROJECTED, *("residualized", "components", "shared", "selection")}
    kinds = {question.kind for question in (PRETRAINING, EVALUATION, EMBEDDING, LACKING)}

    assert others | kinds | {"leave_one_site_out", "reference_site"} == registry.TAKEN
    for name in registry.ANALYSES:
        assert Job(analysis=name, parameters={}, table=TableSpec(features="embedding")).analysis == name
    with pytest.raises(ValidationError):
        Job(analysis="ridge2", parameters={}, table=TableSpec(features="embedding"))


def test_an_unfinished_class_is_refused():
    with pytest.raises(HarmonizationError, match="analysis 'half' lacks apply, effect_shapes, estimate, sends"):
        registry.register(type("Half", (Harmonizer,), {"name": "half"}))


def test_what_a_site_has_not_installed_is_refused_before_training(tmp_path):
    asked = read_study(tmp_path).introduction()
    without = asked.model_copy(update={"analyses": [*asked.analyses, "not_here"]})

    for named in ([], ["not_here"]):
        may = {"studies": ("*",), "analyses": (*every_analysis(), *named), "vectors": ("*",), "columns": ("*",)}
        policy = Policy(**may, secure_sum_required=False)
        assert not list(policy_objections(policy, asked))
        (refusal,) = policy_objections(policy, without)
        assert refusal.code is RefusalCode.PROTOCOL
        assert "analysis 'not_here' is not known here. Install the package that it comes from" in str(refusal)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise ValueError('no such luck')", r"ValueError: no such luck\)\. Mend the package"),
        ("import sys; sys.exit('bye')", r"SystemExit: bye\)\. Mend"),
        ("import not_there", r"ModuleNotFoundError: No module named 'not_there'\)\. Mend"),
    ],
)
def test_what_cannot_be_loaded_is_named(plugin, tmp_path, monkeypatch, content, said):
    (plugin / "broken.py").write_text(content)
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fedbrainlm.analyses]\nmine = broken\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(HarmonizationError, match=rf"package 'broken': its analysis 'mine' cannot be loaded \({said}"):
        registry.load_others()
