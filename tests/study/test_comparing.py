from typing import get_args

from client.door.policy import SHOWS_ONE_SITE
from harmonization import make_harmonizer
from study.comparing import CONTROL, HARMONIZED, RAW, held_out_measures, site_measures, variants_of
from study.sections import Method

SITES = {"a": 20, "b": 30, "c": 25}


def test_the_control_is_told_of_no_covariates(read):
    raw, harmonized, control = variants_of(read(), [*SITES])

    assert [variant.name for variant in (raw, harmonized, control)] == [RAW, HARMONIZED, CONTROL]
    assert [item["name"] for item in harmonized.covariates] == ["age", "sex"]
    assert (control.method, control.covariates) == ("combat", [])
    assert raw.method == "none"


def test_without_a_method_only_raw_features_and_what_is_compared_are_left(read):
    variants = variants_of(read(harmonization={"method": "none"}, analyses={"compare": ["combat", "none"]}), [*SITES])

    assert [(variant.name, variant.method) for variant in variants] == [("raw", "none"), ("combat", "combat")]


def test_every_method_can_be_compared(read):
    compared = read(harmonization={"smooth": {"age": [18, 90]}}, analyses={"compare": list(get_args(Method))})

    variants = variants_of(compared, [*SITES])

    assert {variant.method for variant in variants} == set(get_args(Method))
    for variant in variants:
        assert make_harmonizer(variant.method, variant.options).name == variant.method


def test_what_a_study_asks_for_covers_all_its_tasks(read):
    everything = read(
        harmonization={"method": "combat_gam", "smooth": {"age": [18, 90]}},
        analyses={
            "targets": ["age", "sex"],
            "leave_one_site_out": True,
            "compare": ["covbat"],
            "site_classification": True,
            "site_network": True,
        },
    )
    allowed = set(everything.asks_for())

    for variant in variants_of(everything, [*SITES]):
        tasks = held_out_measures(everything, "embedding", variant, SITES)
        tasks |= site_measures(everything, "embedding", variant)
        for task in tasks.values():
            assert set(task.analysis.asks_for) <= allowed


def test_no_measure_has_a_place_for_one_site_unless_the_study_says_so(read):
    """What a policy must name is what a study must name, too."""
    usual = read(analyses={"targets": ["age", "sex"]})

    assert not set(usual.asks_for()) & SHOWS_ONE_SITE
    for variant in variants_of(usual, [*SITES]):
        tasks = held_out_measures(usual, "embedding", variant, SITES)
        tasks |= site_measures(usual, "embedding", variant)
        assert not {name for task in tasks.values() for name in task.analysis.asks_for} & SHOWS_ONE_SITE
        assert "site" not in {task.table.target for task in tasks.values()}
    for name in ("site_classification", "site_network"):
        assert set(read(analyses={name: True}).asks_for()) & SHOWS_ONE_SITE == {name}
    for field, method in (("method", "site_adversarial"), ("reference", "a")):
        asked = read(harmonization={field: method}).asks_for()
        assert len(set(asked) & SHOWS_ONE_SITE) == 1
