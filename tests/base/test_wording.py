"""What settings may be, and what is wrong with them, in plain words for every kind of field that pydantic knows."""

import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from base.settings import Settings
from base.wording import describe, docstrings_of, faults_of

Share = Annotated[float, Field(ge=0, lt=1)]


class Inner(Settings):
    """Fields inside of others."""

    levels: tuple[str, ...] | None = Field(None, min_length=2)
    """Agreed levels,
    on two lines."""
    rate: float = 1.0


class Outer(Settings):
    """One field of every kind."""

    number: float = Field(1.0, gt=0)
    whole: int = Field(1, ge=1, le=2_000_000)
    strict: int = Field(1, ge=1, strict=True)
    share: Share | None = None
    flag: bool = True
    text: str = Field("a", pattern="^a$", json_schema_extra={"words": "the letter a"})
    plain: str = ""
    path: Path = Path()
    choice: Literal["combat", "covbat"] = "combat"
    either: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    pair: tuple[Share, Share] = (0.1, 0.2)
    names: tuple[str, ...] = ()
    weights: dict[Literal["random", "time"], Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)
    named: dict[str, Inner] = Field(default_factory=dict)
    inner: Inner | None = None


def faults(content: dict[Any, Any], model: type[BaseModel] = Outer) -> list[str]:
    with pytest.raises(ValidationError) as error:
        model.model_validate(content)
    return [str(fault) for fault in faults_of(error.value, model)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"number": 0}, "'number' is 0; expected a number above 0. Correct it."),
        ({"number": "fast"}, "'number' is 'fast'; expected a number above 0. Correct it."),
        ({"number": float("inf")}, "'number' is inf, which is not finite; expected a number above 0. Correct it."),
        ({"whole": 1.5}, "'whole' is 1.5; expected a whole number from 1 to 2,000,000. Correct it."),
        ({"strict": True}, "'strict' is true; expected a whole number of at least 1. Correct it."),
        ({"share": 1}, "'share' is 1; expected a number of at least 0 and below 1, or null. Correct it."),
        ({"flag": "maybe"}, "'flag' is 'maybe'; expected true or false. Correct it."),
        ({"text": "b"}, "'text' is 'b'; expected the letter a. Correct it."),
        ({"plain": 7}, "'plain' is 7; expected text. Put it in quotes."),
        ({"plain": False}, "'plain' is false; expected text. Put it in quotes."),
        ({"path": [1]}, "'path' is [1]; expected a path. Correct it."),
        ({"choice": "kombat"}, "'choice' is 'kombat'; expected one of combat, covbat. Did you mean 'combat'?"),
        ({"choice": None}, "'choice' is null; expected one of combat, covbat. Correct it."),
        ({"either": "many"}, "'either' is 'many'; expected a whole number from 1 to 64, or auto. Correct it."),
        ({"either": 0}, "'either' is 0; expected a whole number from 1 to 64, or auto. Correct it."),
        (
            {"pair": [0.1]},
            "'pair' is too short; expected a list of 2: each a number of at least 0 and below 1. Add to it.",
        ),
        ({"pair": [0.1, 1]}, "'pair', entry 2, is 1; expected a number of at least 0 and below 1. Correct it."),
        ({"names": "age"}, "'names' is 'age'; expected a list, each entry text. Correct it."),
        ({"names": [1]}, "'names', entry 1, is 1; expected text. Put it in quotes."),
        ({"weights": {"randm": 1}}, "'weights.randm' is not a known name; expected one of random, time. Correct it."),
        ({"weights": {"time": 0}}, "'weights.time' is 0; expected a number above 0. Correct it."),
        ({"bounds": {"age": 3}}, "'bounds.age' is 3; expected a list of 2: each a number. Correct it."),
        ({"bounds": {"age": [1, "x"]}}, "'bounds.age', entry 2, is 'x'; expected a number. Correct it."),
        ({"named": {"dx": {"type": 1}}}, "'named.dx.type' is not a known field. Known fields: levels, rate."),
        ({"named": {"dx": {"level": 1}}}, "'named.dx.level' is not a known field. Did you mean 'levels'?"),
        ({"named": {"dx": 3}}, "'named.dx' is 3; expected fields of its own: levels, rate. Correct it."),
        ({"inner": {"rate": "x"}}, "'inner.rate' is 'x'; expected a number. Correct it."),
        ({"rate": 1}, "'rate' is not a known field. Did you mean 'inner.rate'?"),
        ({3: 1}, "'3' is not a known field. Known fields: "),
    ],
)
def test_faults_are_plain_sentences(content, said):
    (fault,) = faults(content)
    assert fault.startswith(said) if said.endswith(" ") else fault == said


def test_a_list_that_is_too_short_only_for_what_is_wrong_in_it_is_told_once():
    assert faults({"inner": {"levels": [1, "b"]}}) == [
        "'inner.levels', entry 1, is 1; expected text. Put it in quotes."
    ]
    assert faults({"inner": {"levels": ["b"]}}) == [
        "'inner.levels' is ['b']; expected a list of at least 2, each entry text; or null. Correct it."
    ]


def test_a_message_shows_little_of_what_a_file_holds_and_nothing_that_a_terminal_obeys():
    (fault,) = faults({"number": ["x" * 10**6] * 10**4})
    assert len(fault) < 500
    (fault,) = faults({"a\x1b[31m\nb": 1})
    assert fault.isprintable()


def test_docstrings_below_fields_are_found():
    assert docstrings_of(Inner) == {"levels": "Agreed levels, on two lines."}


def every_settings_class() -> list[type[Settings]]:
    """Every class of settings in the project."""
    for room in ("cohorts", "brainlm", "study", "client", "server", "deployment", "cli"):
        for module in pkgutil.walk_packages([str(Path(__file__).parents[2] / room)], f"{room}."):
            importlib.import_module(module.name)
    found, new = set(), {Settings}
    while new:
        found |= new
        new = {one for cls in new for one in cls.__subclasses__()} - found
    return sorted((cls for cls in found if not cls.__module__.startswith("tests")), key=str)


@pytest.mark.parametrize("cls", every_settings_class(), ids=lambda cls: cls.__name__)
def test_every_field_of_the_project_can_be_described_and_takes_finite_numbers_alone(cls):
    schema = cls.model_json_schema()

    for name, field in schema.get("properties", {}).items():
        said = describe(field, schema)
        assert "anything" not in said or field.get("additionalProperties") is True, (name, said)
        assert "^" not in said, (name, said)
    assert cls.model_config["allow_inf_nan"] is False
    assert cls.model_config["extra"] == "forbid"


def test_every_pattern_says_in_words_what_it_means():
    def patterns(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, list):
            return [found for one in node for found in patterns(one)]
        if not isinstance(node, dict):
            return []
        return [*([node] if isinstance(node.get("pattern"), str) else []), *patterns(list(node.values()))]

    without = {
        (cls.__name__, node["pattern"])
        for cls in every_settings_class()
        for node in patterns(cls.model_json_schema())
        if "words" not in node
    }
    assert without == set()
