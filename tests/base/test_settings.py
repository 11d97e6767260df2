import tracemalloc

import pytest
from pydantic import Field

from base.errors import SettingsError
from base.settings import Settings, parse_yaml, read_settings


class Inner(Settings):
    rate: float = Field(1.0, gt=0)
    rates: tuple[float, ...] = ()
    by_name: dict[str, int | None] = Field(default_factory=dict)
    kept: bool = False


class Outer(Settings):
    name: str
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ninner: {rat: 2}", r"'inner\.rat' is not a known field. Did you mean 'rate'\?"),
        ("name: a\ncolour: red", "Known fields: inner, name"),
        ("inner: {rate: 2}", "'name' is missing"),
        ("name: a\ninner: {rate: -1}", r"'inner\.rate' is -1; expected a number above 0"),
        ("- a\n- b", "expected 'name: value' lines"),
        ("name: [", "is not valid YAML near line"),
        ('name: "a\\0b"', "a text holds a NUL character"),
        ("name: a\nname: b", r"'name' stands twice in one place \(lines 1 and 2\)"),
        ("name: a\ninner: {rate: 1, rate: 2}", "'rate' stands twice"),
        ("name: a\ninner:\n  rate: 1\n  kept: no\n  rate: 2", r"'rate' stands twice in one place \(lines 3 and 5\)"),
        ("name: a\ninner:\n\trate: 2", "near line 3 .it has a tab there, where YAML takes spaces"),
        ("name: a\ninner: {rate: yes}", r"'inner\.rate' is true; expected a number above 0"),
        ("name: a\ninner: {rates: [1, no]}", r"'inner\.rates' is \[1, False\]; expected a list, each entry a number"),
        ("name: a\ninner: {by_name: {x: on}}", r"'inner\.by_name' is .*; expected fields of its own"),
    ],
)
def test_faults_are_said_in_the_user_s_words(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)

    with pytest.raises(SettingsError, match=said) as fault:
        read_settings(tmp_path / "s.yaml", Outer)

    assert str(tmp_path / "s.yaml") in str(fault.value)


def test_good_files_are_read(tmp_path):
    (tmp_path / "s.yaml").write_text("name: a\ninner: {rate: 2, kept: yes, by_name: {name: 3, x: null}}")

    expected = Inner(rate=2, kept=True, by_name={"name": 3, "x": None})
    assert read_settings(tmp_path / "s.yaml", Outer) == Outer(name="a", inner=expected)


def test_absent_files_and_folders_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        read_settings(tmp_path / "none.yaml", Outer)
    with pytest.raises(SettingsError, match="is a folder"):
        read_settings(tmp_path, Outer)


def chain(links: int) -> str:
    """YAML of a few hundred bytes whose last alias stands for ten to the number of links."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, links)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        chain(8),
        "name: " + "x" * 2**18,
        "a: &a " + "y" * 1000 + "\nb: [" + ", ".join(["*a"] * 2000) + "]\n",
        "a: &a {b: 1}\nc: {<<: [" + ", ".join(["*a"] * 60_000) + "]}\n",
        "a: " + "[" * 60 + "]" * 60,
    ],
    ids=["aliases", "long", "repeated text", "merges", "deep"],
)
def test_what_stands_for_more_than_settings_are_is_refused_before_it_is_made(text):
    tracemalloc.start()
    with pytest.raises(SettingsError, match=r"study\.yaml: (stands for more|has \d+ bytes)"):
        parse_yaml(text.encode(), "study.yaml")
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()


@pytest.mark.parametrize("content", ["a: 1\nb: 2\na: 3\n", "b: {x: 1, 'x': 2}\n", "p: {<<: {a: 1}, <<: {b: 2}}\n"])
def test_a_mapping_that_says_a_thing_twice_is_refused(content):
    """Whoever reads it goes by the first, and YAML by the last."""
    with pytest.raises(SettingsError, match="stands twice in one place"):
        parse_yaml(content.encode(), "policy")


@pytest.mark.parametrize("number", ["9" * 4400, ":".join(["59"] * 40_000)], ids=["digits", "sexagesimal"])
def test_a_number_without_end_is_refused(number):
    with pytest.raises(SettingsError, match="a number has"):
        parse_yaml(f"seed: {number}\n".encode(), "study")


def test_aliases_that_stand_for_little_are_read():
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n" + chain(3)

    content = parse_yaml(text.encode(), "study.yaml")

    assert (content["b"], content["c"], len(content["a2"])) == ({"x": 1}, {"x": 1, "y": 2}, 10)


def test_an_alias_inside_its_own_anchor_is_refused():
    with pytest.raises(SettingsError, match="stands inside its own anchor"):
        parse_yaml(b"a: &a [*a]\n", "study.yaml")
