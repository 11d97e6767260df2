import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest

from cli.watching import print_summary
from cohorts import Cohort, load_atlas
from runtime.fab import PROJECT
from server.journal import Journal
from server.report import write_report
from server.report.data import RunData
from server.report.figures import FIGURES, draw
from server.report.methods import methods_paragraph
from server.summary import write_summary
from study.settings import load_study
from tests.support.pages import A4_WIDTH, crowd, laid_out


def as_simulated(run, folder):
    """The finished run, laid out as a simulation is: with the sites' folders inside."""
    shutil.copytree(run.folder, folder)
    for site in run.sites:
        shutil.copytree(site.parent, folder / "sites" / site.parent.name)
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """To change."""
    return as_simulated(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def written(finished_run, tmp_path_factory):
    """To look at: with its report."""
    folder = as_simulated(finished_run, tmp_path_factory.mktemp("written") / "run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def deployed(finished_run, tmp_path_factory):
    """The same as a coordinator has it: without the sites' folders."""
    folder = shutil.copytree(finished_run.folder, tmp_path_factory.mktemp("deployed") / "run")
    write_report(folder)
    return folder


@contextmanager
def changed_summary(folder) -> Iterator[dict]:
    """Change what a run is said to have found."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    yield summary
    path.write_text(json.dumps(summary))


class Outline(HTMLParser):
    """Headings, images and cells of a page, and whether tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images = 0
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images += 1
            assert dict(attrs)["alt"]
            assert dict(attrs)["src"].startswith("data:image/svg+xml;base64,")
        elif tag not in {"meta", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"h1", "h2"}:
            self.headings.append(data.strip())
        if self.open and self.open[-1] == "td":
            self.cells.append(data.strip())


def outline_of(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def test_a_run_that_failed_before_the_sites_had_keys_in_common_has_a_report(tmp_path):
    study = load_study(PROJECT / "configs" / "studies" / "demo.yaml")
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    journal = Journal(tmp_path)
    journal.note(status="failed", reason="no roster of keys in common", rounds=3)
    exchange = journal.begin_exchange("describe", "query.describe", None, asked=1, bytes_down=1)
    journal.end_exchange(exchange, {"node 1": "no reply"}, bytes_up=0)
    write_summary(study, journal, {}, None)

    assert "no roster of keys in common" in write_report(tmp_path).read_text()


def test_the_report_of_a_simulation_shows_everything(written):
    page = (written / "report.html").read_text()
    outline = outline_of(page)

    assert outline.headings[0] == "A small study"
    assert outline.images == len(FIGURES)
    assert {"aalborg", "embedding", "connectivity", "query.summarize"} <= set(outline.cells)
    assert not re.search(r'src="(?!data:)', page)  # needs nothing beside it and fetches nothing
    assert all(link.startswith("report-tables/") for link in re.findall(r'href="([^"]*)"', page))


def test_the_report_says_which_run_it_is_of(written):
    page = " ".join((written / "report.html").read_text().split())

    begun = datetime.fromtimestamp(Journal(written).table("exchanges")["started"].min(), UTC)
    assert f"Run run of study small · {begun:%d %B %Y, %H:%M} to " in page
    assert f"FedBrainLM {version('fedbrainlm')}" in page
    run = pd.read_csv(written / "report-tables" / "run.csv").set_index("what")["value"]
    final = written / "checkpoints" / "round-0002.safetensors"
    assert run["SHA-256 of checkpoints/round-0002.safetensors"] == hashlib.sha256(final.read_bytes()).hexdigest()
    assert run["begun"] == f"{begun:%Y-%m-%d %H:%M:%S} UTC"
    assert run["version of torch"] == version("torch")


def test_every_table_lies_beside_the_page_with_all_digits(written):
    page = (written / "report.html").read_text()
    folder = written / "report-tables"
    summary = json.loads((written / "summary.json").read_text())

    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}

    assert page.count("<table>") == len(tables) == len(re.findall(r'href="report-tables/\w+\.csv"', page))
    effects = tables["effects"].set_index(["features", "variant"])
    probes = tables["probes"].set_index(["target", "features", "variant"])
    for features, effect in summary["harmonization"]["site_effect"].items():
        assert effects.loc[(features, "raw"), "η²"] == effect["raw"]["eta_squared"]
        assert effects.loc[(features, "raw"), "PERMANOVA p"] == effect["raw"]["permanova"]["p_value"]
        age = summary["probes"][features]["age"]["harmonized"]
        row = probes.loc[("age", features, "harmonized")]
        assert (row["R²"], row["mean absolute error"], row["R² 95% to"]) == (
            age["r2"],
            age["mean_absolute_error"],
            age["r2_high"],
        )
    assert len(tables["parcels"]) == 100
    assert set(tables["parcels"]["parcel"]) == set(load_atlas("schaefer100").labels)
    assert tables["sites"]["participants"].tolist() == [21, 16, 11]


def test_who_was_studied_is_what_the_sites_cohorts_say(written, small_cohorts):
    table = pd.read_csv(written / "report-tables" / "people.csv").set_index("site")
    people = {path.name: Cohort.open(path).covariates() for path in small_cohorts}
    everybody = pd.concat(people.values())

    for site, covariates in {**people, "all sites": everybody}.items():
        assert table.loc[site, "age mean"] == pytest.approx(covariates["age"].mean())
        assert table.loc[site, "age to"] == covariates["age"].max()
        assert table.loc[site, "sex F"] == (covariates["sex"] == "F").sum()
    assert table["TR (s)"].to_dict() == {"aalborg": "2", "bergen": "1.5", "coimbra": "2.5", "all sites": "1.5, 2, 2.5"}
    text, _ = methods_paragraph(RunData(written))
    assert f"Participants: age: mean {everybody['age'].mean():.3g}" in text
    assert "Repetition times were 1.5 and 2 and 2.5 s." in text
    assert "Recordings were excluded of fewer than 40 frames" in text


def test_of_a_deployed_study_who_was_studied_is_known_from_its_sums_alone(deployed, small_cohorts):
    table = pd.read_csv(deployed / "report-tables" / "people.csv").set_index("over all sites")["mean or share"]
    everybody = pd.concat(Cohort.open(path).covariates() for path in small_cohorts)
    assert table["age"] == pytest.approx(everybody["age"].mean())
    assert table["sex F"] == pytest.approx((everybody["sex"] == "F").mean())
    assert table["mean FD"] == pytest.approx(everybody["mean_fd"].mean())
    text, _ = methods_paragraph(RunData(deployed))
    assert "Repetition times from 0.3 to 5 s were accepted [state the sites' own" in text


def test_numbers_and_categories_have_columns_of_their_own(run_folder):
    category = {"balanced_accuracy": 0.6, "auroc": 0.7, "balanced_accuracy_p_value": 0.2}
    with changed_summary(run_folder) as summary:
        for targets in summary["probes"].values():
            targets["sex"] = dict.fromkeys(("raw", "harmonized"), category)

    page = write_report(run_folder).read_text()

    table = pd.read_csv(run_folder / "report-tables" / "probes.csv").set_index("target")
    assert table.loc["sex", ["R²", "mean absolute error"]].isna().all(axis=None)
    assert table.loc["age", ["balanced accuracy", "AUROC"]].isna().all(axis=None)
    assert (table.loc["sex", ["AUROC", "p"]] == [0.7, 0.2]).all(axis=None)
    assert "error or AUROC" not in page


def test_no_axis_makes_much_of_differences_that_are_nothing(run_folder):
    with changed_summary(run_folder) as summary:
        for number, targets in enumerate(summary["probes"].values()):
            targets["age"] = {name: {**scores, "r2": 0.4 + number * 1e-3} for name, scores in targets["age"].items()}
    data = RunData(run_folder)
    data.parcels["masked_r2"] = np.linspace(0.494, 0.5, 100)

    panels = draw("effects", data).axes
    bar = draw("parcel_map", data).axes[-1]

    assert all(np.ptp(axes.get_xlim()) >= 0.4 for axes in panels)
    assert np.ptp(bar.get_ylim()) >= 0.1


def test_brains_have_sides_and_parcels_have_names(written):
    data = RunData(written)
    letters = [[text.get_text() for text in axes.texts] for axes in draw("parcel_map", data).axes[:3]]
    titles = {axes.get_title(loc="right") for axes in draw("reconstruction", data).axes} - {""}

    assert letters == [["L", "R"], ["L", "R"], ["P", "A"]]
    assert titles <= set(load_atlas("schaefer100").labels)
    assert len(titles) == 3


LONG = [f"Universitätsklinikum_Schleswig-Holstein_Campus_Kiel_and_Luebeck_{number:02d}" for number in range(12)]


def test_many_sites_with_long_names_can_be_told_apart(run_folder):
    crowd(run_folder, LONG)
    data = RunData(run_folder)

    figure = draw("learning_curves", data)
    lines = [(line.get_color(), line.get_linestyle()) for line in figure.axes[1].lines if line.get_label() in LONG]
    (legend,) = figure.legends

    assert len(set(lines)) == len(lines) == 12
    figure.draw_without_rendering()
    assert legend.get_window_extent().width <= figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 100


def test_no_table_is_clipped_on_the_screen_or_in_print(run_folder, deployed, tmp_path):
    """Laid out by a real browser: with three sites as a coordinator has them, and with many that have long names."""
    crowd(run_folder, LONG)
    crowded, plain = write_report(run_folder), deployed / "report.html"

    for page, form in (
        (crowded, {"width": 1300}),
        (crowded, {"width": 700}),
        (crowded, {"width": A4_WIDTH, "printed": True}),
        (plain, {"width": 700}),
    ):
        found = laid_out(page, tmp_path, **form)
        assert (found["width"], found["cut"]) == (form["width"], [])
        assert found["tables"] == page.read_text().count("<table>")


def test_the_coordinator_s_report_draws_no_participant(deployed):
    page = (deployed / "report.html").read_text()

    assert outline_of(page).images == len(FIGURES) - 2
    assert "A recording never leaves its hospital" in page
    assert "Embeddings stay at the sites" in page
    assert "sub-" not in page


def test_the_report_is_the_same_when_made_again(written):
    first, stale = (written / "report.html").read_bytes(), written / "report-tables" / "association.csv"
    stale.write_text("of an earlier report")

    assert write_report(written).read_bytes() == first
    assert not stale.exists()


def test_a_report_without_chance_or_probes_is_made_all_the_same(run_folder):
    """As where the sites' policies let out no sums over groups as small as theirs."""
    with changed_summary(run_folder) as summary:
        for effect in summary["harmonization"]["site_effect"].values():
            effect["raw"] |= {"null_mean": None, "null_95": None}
        summary["probes"] = {features: {} for features in summary["probes"]}

    assert outline_of(write_report(run_folder).read_text()).images == len(FIGURES)


def test_whom_sites_left_out_is_said_under_their_table_and_on_the_terminal(run_folder, capsys):
    with changed_summary(run_folder) as summary:
        assert all(summary["sites"][site]["n_too_short"] == 0 for site in summary["sites"])
        summary["sites"]["aalborg"] |= {"n_recordings": 21, "n_too_short": 4, "n_left_out": 3, "n_incomplete": 5}
        summary["sites"]["aalborg"] |= {"n_like_visits": 24}
        summary["sites"]["bergen"] |= {"n_incomplete": None, "n_without_vectors": 2}
    n = summary["sites"]["aalborg"]["n_participants"]
    said = (
        "aalborg: 4 of 25 recordings are shorter than the window, which leaves 3 participants out.",
        f"aalborg: 5 of {n} participants lack a covariate, and are in no analysis that needs it.",
        "bergen: a few participants lack a covariate, and are in no analysis that needs it.",
        "bergen: 2 of",
        "aalborg: the ids of 24 participants look like visits of the same people",
    )

    page = write_report(run_folder).read_text()
    print_summary(summary)

    shown = capsys.readouterr().out
    for sentence in said:
        assert sentence in page
        assert sentence in shown
    assert "coimbra:" not in shown


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(written, name):
    figure = draw(name, RunData(written))

    assert figure is not None
    assert figure.axes


def test_the_methods_paragraph_states_the_run_s_own_numbers(written):
    text, references = methods_paragraph(RunData(written))

    assert "48 simulated resting-state recordings of 48 participants at 3 sites" in text
    assert "2 rounds of federated averaging" in text
    assert "keeping effects of age, sex" in text
    cited = {int(number) for group in re.findall(r"\[([\d, ]+)\]", text) for number in group.split(",")}
    assert cited == set(range(1, len(references) + 1))
    assert all(re.search(r"\b(19|20)\d\d\b|arXiv:\d", reference) for reference in references)


def test_names_are_escaped(run_folder):
    with changed_summary(run_folder) as summary:
        summary["title"] = "<script>alert(1)</script>"

    page = write_report(run_folder).read_text()

    assert "<script>" not in page
    assert "&lt;script&gt;" in page
