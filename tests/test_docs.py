"""What README and guides point to, and tell a reader to type, is what there is."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, load
from harmonization import ANALYSES
from tests.test_layering import MAY_IMPORT

PROJECT = Path(__file__).parents[1]
FOLDERS = {*MAY_IMPORT, "benchmarks", "configs", "docker", "tests"}
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
FILE = re.compile(rf"`((?:{'|'.join(sorted(FOLDERS))})/[\w/.-]+\.\w+)`")
RUN = "runs/demo/20261122-194952"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(page):
    text = "" if page.name == "CHANGELOG.md" else page.read_text(encoding="utf-8")
    assert [name for name in FILE.findall(text) if not (PROJECT / name).is_file()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_analyses_has_all_of_them():
    page = (PROJECT / "docs" / "harmonization.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+)", page, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {name for name, known in ANALYSES.items() if known.rows == "participants"} - named == {"none", "permanova"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands_in(block: str) -> list[list[str]]:
    """Words of each of our commands in a block of shell, without what it is piped or chained to."""
    lines = [line.partition(" #")[0] for line in re.sub(r"\$\(.*?\)", "x", block.replace("\\\n", " ")).splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\|?|;|>", line)]
    return [shlex.split(part)[1:] for part in parts if part.startswith("fedbrainlm ") and "…" not in part]


TOLD = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
    for page in PAGES
    for block in blocks(page, "sh")
    for words in commands_in(block)
]


@pytest.mark.parametrize("words", TOLD)
def test_a_command_in_the_docs_is_one_that_there_is(words):
    assert words[0] in COMMANDS
    command, path = load(words[0]), [words[0]]
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest[0] in command.commands, f"{' '.join(path)} {rest[0]}: no such command"
        path.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(" ".join(path), list(rest))  # raises where an option or argument is wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_python_in_the_docs_imports_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_readmes_python_runs(finished_run, small_cohorts):
    (block,) = blocks(PROJECT / "README.md", "python")
    *_, checkpoint = sorted((finished_run.folder / "checkpoints").glob("round-*.safetensors"))
    told = block.replace(f"{RUN}/cohorts/aalborg", str(small_cohorts[0]))
    told = told.replace(f"{RUN}/checkpoints/round-0008.safetensors", str(checkpoint))
    assert RUN not in told

    names: dict = {}
    exec(compile(told, "README.md", "exec"), names)

    assert names["harmonized"].shape == names["X"].shape
    means = [names["harmonized"][names["site"] == scanner].mean(axis=0) for scanner in (0, 1)]
    before = [names["X"][names["site"] == scanner].mean(axis=0) for scanner in (0, 1)]
    assert abs(means[0] - means[1]).mean() < abs(before[0] - before[1]).mean()
