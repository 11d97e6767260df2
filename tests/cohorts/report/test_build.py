import re
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest

from cohorts.quality import QualityRules
from cohorts.report import write_quality_report
from tests.support.pages import A4_WIDTH, laid_out


def moved(recorded, name: str, mean_fd: float):
    trace = np.full(120, mean_fd, np.float32)
    trace[0] = np.nan
    return recorded(name, framewise_displacement=trace, censored=trace > 0.5)


@pytest.fixture(scope="module")
def path(shelf, recorded, tmp_path_factory):
    stored = [moved(recorded, f"sub-{n:02d}", 0.02 * n + (0.6 if n == 11 else 0)) for n in range(12)]
    refused = [
        ("r1", "high-motion", "sub-90_bold.nii.gz: mean FD is 0.800 mm. Leave it out."),
        ("r2", "high-motion", "sub-91_bold.nii.gz: mean FD is 0.900 mm. Leave it out."),
        ("r3", "truncated", "<b>sub-92</b>.nii.gz: ends too early. Copy it again."),
    ]
    cohort = shelf(stored, refused, age=[30.0 + n for n in range(11)] + [np.nan], sex=["F"] * 7 + ["M"] * 5)
    return write_quality_report(cohort, tmp_path_factory.mktemp("report") / "quality.html", recordings=2)


@pytest.fixture(scope="module")
def page(path):
    return path.read_text()


@pytest.fixture(scope="module")
def text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))


def test_the_page_needs_nothing_beside_it(page):
    assert "<script" not in page
    assert "://" not in page
    assert re.findall(r'src="(?!data:image/svg\+xml;base64,)', page) == []
    assert all(link.startswith("quality-tables/") for link in re.findall(r'href="([^"]*)"', page))
    assert "stays at the site" in page


def test_the_page_holds_the_numbers(text):
    assert "Atlas schaefer100, 100 parcels · preprocessing fmriprep-24.1 · TR 2 s" in text
    assert "12 participants 12 recordings" in text
    assert "1 beyond a threshold" in text
    assert "high-motion 2 sub-90_bold.nii.gz: mean FD is 0.800 mm. Leave it out." in text
    assert "&lt;b&gt;sub-92&lt;/b&gt;" in text
    assert "mean FD mm 0.11 0.01 0.48 ≤ 0.55 1 12 of 12" in text
    assert "over 12 participants median size of the correlation" in text


def test_the_page_states_what_a_paper_must(text):
    assert f"prepared with FedBrainLM {version('fedbrainlm')}" in text
    assert re.search(r"Recordings [0-9a-f]{12} ·", text)
    assert "age 11 35.000 3.317 30.000 40.000" in text
    assert "sex 12 7 F, 5 M" in text
    assert "max_mean_fd 0.55" in text
    assert "min_tsnr none" in text
    assert (
        "12 recordings of 12 participants (age: mean 35 (SD 3.32), 30 to 40, 1 unknown; sex: 7 F, 5 M) were analysed "
        "as mean time series of the 100 parcels of schaefer100, with repetition times of 2 s" in text
    )
    assert (
        "Recordings were excluded of fewer than 40 frames, with a signal in less than 80% of the parcels, of less than "
        "120 s after censoring, with a mean framewise displacement above 0.55 mm, or with more than 50% of the frames "
        "displaced by over 0.5 mm." in text
    )
    assert "3 recordings were excluded." in text


def test_every_table_lies_beside_the_page_with_all_digits(path, page):
    folder = path.with_name("quality-tables")
    linked = re.findall(r'href="quality-tables/([^"]*)"', page)

    assert sorted(linked) == sorted(file.name for file in folder.iterdir())
    assert {"quarantine.csv", "measures.csv", "rules.csv", "demographics.csv", "qcfc.csv"} <= set(linked)
    measures = pd.read_csv(folder / "measures.csv").set_index("measure")
    assert measures.loc["mean FD", "median"] == pytest.approx(0.11)
    assert measures.loc["mean FD", "threshold"] == 0.55
    assert np.isnan(measures.loc["temporal SNR", "threshold"])


def test_the_worst_recordings_are_shown_with_why(page):
    articles = page.split("<article>")[1:]

    assert len(articles) == 2
    assert "<h3>sub-11</h3>" in articles[0]
    assert "Shown for: highest mean FD" in articles[0]
    assert '<div class="beyond"><dt>mean FD</dt><dd>0.82 mm</dd></div>' in articles[0]


def test_the_same_cohort_gives_the_same_page(shelf, recorded, tmp_path):
    cohort = shelf([recorded("a"), recorded("b")])
    pages = [write_quality_report(cohort, tmp_path / n / "page.html", recordings=1).read_bytes() for n in "12"]

    assert pages[0] == pages[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_recordings", [0, 1, 3])
def test_what_is_unknown_is_said(shelf, recorded, tmp_path, n_recordings):
    stored = []
    for n in range(n_recordings):
        still = recorded(f"a{n}")
        stored.append(recorded(f"a{n}", signal=still.signal - still.signal.mean(axis=0)))
    page = write_quality_report(
        shelf(stored), tmp_path / "quality.html", rules=QualityRules(), recordings=1
    ).read_text()

    assert "QC-FC is not known" in page
    assert "Nothing was quarantined." in page
    assert 'temporal SNR</td><td></td><td class="number">not known' in page or not stored
    assert "nan" not in re.sub(r'src="[^"]*"', "", page).lower()


def test_no_table_is_clipped_on_the_screen_or_in_print(shelf, recorded, tmp_path):
    """Laid out by a real browser, with long names and messages, as of folders deep down."""
    name = "sub-" + "x" * 60
    stored = [moved(recorded, f"{name}{n:02d}", 0.05 * n) for n in range(3)]
    deep = "derivatives/fmriprep-24.1.1/" + "y" * 80 + "_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    people = {"a_column_of_a_very_long_name_that_nobody_abbreviated": [1.5, 2.5, 3.5], "site": [name] * 3}
    refused = [("r1", "too-short-after-censoring", f"{deep}: is too short. Leave it out.")]
    cohort = shelf(stored, refused, **people)
    page = write_quality_report(cohort, tmp_path / "quality.html", recordings=1)

    for form in ({"width": 1300}, {"width": 700}, {"width": A4_WIDTH, "printed": True}):
        found = laid_out(page, tmp_path, **form)
        assert (found["width"], found["cut"]) == (form["width"], [])
        assert found["tables"] == page.read_text().count("<table>")
