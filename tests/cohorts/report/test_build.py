import re

import numpy as np
import pytest

from cohorts.quality import QualityRules
from cohorts.report import write_quality_report


def moved(recorded, name: str, mean_fd: float):
    trace = np.full(120, mean_fd, np.float32)
    trace[0] = np.nan
    return recorded(name, framewise_displacement=trace, censored=trace > 0.5)


@pytest.fixture(scope="module")
def page(shelf, recorded, tmp_path_factory):
    stored = [moved(recorded, f"sub-{n:02d}", 0.02 * n + (0.6 if n == 11 else 0)) for n in range(12)]
    refused = [
        ("r1", "high-motion", "sub-90_bold.nii.gz: mean FD is 0.800 mm. Leave it out."),
        ("r2", "high-motion", "sub-91_bold.nii.gz: mean FD is 0.900 mm. Leave it out."),
        ("r3", "truncated", "<b>sub-92</b>.nii.gz: ends too early. Copy it again."),
    ]
    return write_quality_report(
        shelf(stored, refused), tmp_path_factory.mktemp("report") / "quality.html", recordings=2
    ).read_text()


def test_the_page_needs_nothing_beside_it(page):
    assert "<script" not in page
    assert "://" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/svg\+xml;base64,)', page) == []
    assert "stays at the site" in page


def test_the_page_holds_the_numbers(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))

    assert "Atlas schaefer100, 100 parcels · preprocessing fmriprep-24.1 · TR 2 s" in text
    assert "12 participants 12 recordings" in text
    assert "1 beyond a threshold" in text
    assert "high-motion 2 sub-90_bold.nii.gz: mean FD is 0.800 mm. Leave it out." in text
    assert "&lt;b&gt;sub-92&lt;/b&gt;" in text
    assert "mean FD 0.11 mm 0.01 to 0.48 mm ≤ 0.55 mm 1 12 of 12" in text
    assert "over 12 participants median size of the correlation" in text


def test_the_worst_recordings_are_shown_with_why(page):
    articles = page.split("<article>")[1:]

    assert len(articles) == 2
    assert "<h3>sub-11</h3>" in articles[0]
    assert "Shown for: highest mean FD" in articles[0]
    assert '<div class="beyond"><dt>mean FD</dt><dd>0.82 mm</dd></div>' in articles[0]


def test_the_same_cohort_gives_the_same_page(shelf, recorded, tmp_path):
    cohort = shelf([recorded("a"), recorded("b")])
    pages = [write_quality_report(cohort, tmp_path / name, recordings=1).read_bytes() for name in ("1.html", "2.html")]

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
    assert "temporal SNR</td><td>not known" in page
    assert "nan" not in re.sub(r'src="[^"]*"', "", page).lower()
