"""docs/settings.md says all of every field, and is as the settings are."""

import re

from client.door.policy import Policy
from client.settings import SiteSettings
from docs.settings_page import PAGE, settings_page
from study.settings import Study


def rows(page: str) -> list[list[str]]:
    """Cells of the rows of fields."""
    fields = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in fields]


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run 'make settings'"


def test_every_field_is_there_with_what_it_takes_and_means():
    page = settings_page()
    named = [cells[0].strip("`") for cells in rows(page)]

    for model in (Study, SiteSettings, Policy):
        assert set(model.model_fields) <= set(named)
    for name, takes, default, about in rows(page):
        assert takes, name
        assert takes != "anything", name
        assert default, name
        assert len(about) > 5, f"{name}: has no docstring"


def test_links_inside_the_page_lead_somewhere():
    page = settings_page()
    headings = {re.sub(r"[^a-z0-9_]", "", heading.lower()) for heading in re.findall("^##+ (.*)", page, re.M)}

    for anchor in re.findall(r"\(#([^)]+)\)", page):
        assert anchor in headings
