"""Pages as a browser lays them out."""

import json
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

A4_WIDTH = 703
"""Width in CSS pixels of what is printed on a page of A4 between the style's margins of 12 mm."""
_MEASURE = """<script>
const cut = [];
for (const box of document.querySelectorAll('.table, td, th, p, h1, h2, h3, dd, dt, blockquote'))
  if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== 'inline')
    cut.push(box.className + ' ' + box.tagName + ': ' + box.textContent.trim().slice(0, 60));
for (const cell of document.querySelectorAll('td, th')) {
  const edge = cell.closest('.table').getBoundingClientRect();
  if (cell.getBoundingClientRect().right > edge.right + 1) cut.push('outside: ' + cell.textContent);
}
const page = document.documentElement;
if (page.scrollWidth > page.clientWidth) cut.push('page ' + page.scrollWidth + ' wide');
const measured = {width: page.clientWidth, tables: document.querySelectorAll('table').length, cut};
document.body.innerHTML = '<pre>' + JSON.stringify(measured) + '</pre>';
</script></body>"""


def find_browser() -> str:
    """Return a Chromium, or skip the test where there is none."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium here to lay the page out; on Debian: apt-get install chromium")
    return found[0]


def laid_out(page: Path, folder: Path, *, width: int, printed: bool = False) -> dict:
    """Lay a page out and return its width, its number of tables, and what of its text is cut off.

    Parameters
    ----------
    folder : path
        Where a copy of the page that measures itself, and the browser's profile, may lie.
    width : int
        Of the window in CSS pixels.
    printed : bool
        Take the style of the printed page.
    """
    text = page.read_text().replace("</body>", _MEASURE)
    if printed:
        text = text.replace("@media print", "@media all")
    copy = folder / "measured.html"
    copy.write_text(text)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [find_browser(), *options, f"--window-size={width},2000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(
        re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1].replace("&gt;", ">").replace("&lt;", "<")
    )


def crowd(folder: Path, names: list[str]) -> None:
    """Let a run's folder be one of many sites: those that it has, again and again under the given names."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    known = list(summary["sites"])
    twin = {name: known[number % len(known)] for number, name in enumerate(names)}
    summary["sites"] = {name: summary["sites"][site] for name, site in twin.items()}
    summary["privacy"]["audit_heads"] = dict.fromkeys(names, "0123456789abcdef" * 4)
    summary["left_out"] = ", ".join(names[:2])
    of_sites = summary["pretraining"]["sites"]
    summary["pretraining"]["sites"] = {name: of_sites[site] for name, site in twin.items() if site in of_sites}
    path.write_text(json.dumps(summary))
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute("DELETE FROM metrics WHERE site != 'all'")
        for name in names:
            database.execute(
                "INSERT INTO metrics SELECT round, ?, name, value FROM metrics WHERE site = 'all'", (name,)
            )
    if (folder / "sites").is_dir():
        for name, site in twin.items():
            shutil.copytree(folder / "sites" / site, folder / "sites" / name)
