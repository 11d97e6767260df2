import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from cli.fab import PROJECT
from cli.watching import print_summary
from server.journal import Journal
from server.report import write_report
from server.report.data import RunData
from server.report.figures import FIGURES, draw
from server.report.methods import methods_paragraph
from server.study import load_study
from server.summary import write_summary


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """The finished run, laid out as a simulation is: with the sites' folders inside."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    for site in finished_run.sites:
        shutil.copytree(site.parent, folder / "sites" / site.parent.name)
    return folder


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


def test_the_report_of_a_simulation_shows_everything(run_folder):
    page = write_report(run_folder).read_text()
    outline = outline_of(page)

    assert outline.headings[0] == "A small study"
    assert outline.images == len(FIGURES)
    assert {"aalborg", "embedding", "connectivity", "query.summarize"} <= set(outline.cells)
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs nothing beside it and fetches nothing


def test_the_coordinator_s_report_draws_no_participant(finished_run, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "run")

    page = write_report(tmp_path / "run").read_text()

    assert outline_of(page).images == len(FIGURES) - 2
    assert "A recording never leaves its hospital" in page
    assert "Embeddings stay at the sites" in page
    assert "sub-" not in page


def test_the_report_is_the_same_when_made_again(run_folder):
    first = write_report(run_folder).read_bytes()

    assert write_report(run_folder).read_bytes() == first


def test_a_report_without_chance_or_probes_is_made_all_the_same(run_folder):
    """As where the sites' policies let out no sums over groups as small as theirs."""
    summary = json.loads((run_folder / "summary.json").read_text())
    for effect in summary["harmonization"]["site_effect"].values():
        effect["raw"] |= {"null_mean": None, "null_95": None}
    summary["probes"] = {features: {} for features in summary["probes"]}
    (run_folder / "summary.json").write_text(json.dumps(summary))

    assert outline_of(write_report(run_folder).read_text()).images == len(FIGURES)


def test_whom_sites_left_out_is_said_under_their_table_and_on_the_terminal(run_folder, capsys):
    path = run_folder / "summary.json"
    summary = json.loads(path.read_text())
    assert all(summary["sites"][site]["n_too_short"] == 0 for site in summary["sites"])
    summary["sites"]["aalborg"] |= {"n_recordings": 21, "n_too_short": 4, "n_left_out": 3, "n_incomplete": 5}
    summary["sites"]["aalborg"] |= {"n_like_visits": 24}
    summary["sites"]["bergen"] |= {"n_incomplete": None, "n_without_vectors": 2}
    path.write_text(json.dumps(summary))
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
def test_every_figure_is_drawn(run_folder, name):
    figure = draw(name, RunData(run_folder))

    assert figure is not None
    assert figure.axes


def test_the_methods_paragraph_states_the_run_s_own_numbers(run_folder):
    text, references = methods_paragraph(RunData(run_folder))

    assert "48 simulated resting-state recordings of 48 participants at 3 sites" in text
    assert "2 rounds of federated averaging" in text
    assert "keeping effects of age, sex" in text
    cited = {int(number) for group in re.findall(r"\[([\d, ]+)\]", text) for number in group.split(",")}
    assert cited == set(range(1, len(references) + 1))


def test_names_are_escaped(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    summary["title"] = "<script>alert(1)</script>"
    (run_folder / "summary.json").write_text(json.dumps(summary))

    page = write_report(run_folder).read_text()

    assert "<script>" not in page
    assert "&lt;script&gt;" in page
