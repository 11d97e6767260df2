"""What the guides point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/__init__.py")} - {".venv"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FILE = re.compile(rf"`((?:{'|'.join(sorted(ROOMS | {'benchmarks', 'configs', 'docker'}))})/[\w/.-]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(page):
    text = "" if page.name == "CHANGELOG.md" else page.read_text(encoding="utf-8")
    assert [name for name in FILE.findall(text) if not (ROOT / name).is_file()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
