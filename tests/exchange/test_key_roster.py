import hashlib
import json
import random

import pytest
from pydantic import ValidationError

from exchange.key_roster import KeyRoster, RosterError, SiteKey

#: Public keys of Alice and Bob in RFC 7748, section 6.1.
ALICE = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
BOB = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
BASE = "09" + 31 * "00"
"""The base point of the curve."""


def bundle(name: str, key: str) -> dict[str, str]:
    return {"site": name, "public_key": key, "fingerprint": SiteKey(name=name, public_key=key).fingerprint}


@pytest.fixture
def bundles() -> list[dict[str, str]]:
    return [bundle("bergen", BOB), bundle("aalborg", ALICE), bundle("coimbra", BASE)]


def test_the_canonical_form_is_known_and_its_hash_is_the_file_s(bundles, tmp_path):
    roster = KeyRoster.from_bundles("north", bundles)

    expected = (
        f'{{"name":"north","sites":[{{"name":"aalborg","public_key":"{ALICE}"}},'
        f'{{"name":"bergen","public_key":"{BOB}"}},{{"name":"coimbra","public_key":"{BASE}"}}]}}'
    )
    assert roster.canonical() == expected.encode()
    roster.write(tmp_path / "roster.json")
    assert roster.hash == hashlib.sha256((tmp_path / "roster.json").read_bytes()).hexdigest()


def test_the_order_of_bundles_and_the_layout_of_the_file_do_not_matter(bundles, tmp_path):
    roster = KeyRoster.from_bundles("north", bundles)
    random.Random(0).shuffle(bundles)
    assert KeyRoster.from_bundles("north", bundles) == roster
    assert KeyRoster.from_bundles("south", bundles).hash != roster.hash

    (tmp_path / "pretty.json").write_text(json.dumps(json.loads(roster.canonical()), indent=4))
    assert KeyRoster.read(tmp_path / "pretty.json").hash == roster.hash


def test_keys_come_back_as_they_went_in(bundles):
    roster = KeyRoster.from_bundles("north", bundles)

    assert roster.public_key("aalborg").public_bytes_raw().hex() == ALICE
    with pytest.raises(RosterError, match="does not list the site oslo; it lists aalborg, bergen, coimbra"):
        roster.public_key("oslo")


def test_a_fingerprint_can_be_read_out():
    fingerprint = SiteKey(name="a", public_key=ALICE).fingerprint

    assert fingerprint.replace(" ", "") == hashlib.sha256(bytes.fromhex(ALICE)).hexdigest()[:32]
    assert [len(group) for group in fingerprint.split(" ")] == [4] * 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.pop(), "it lists 2 sites; a secure sum takes at least 3"),
        (lambda b: b.append(bundle("aalborg", "0a" + 31 * "00")), "it lists aalborg more than once"),
        (lambda b: b.append(bundle("oslo", ALICE)), "two sites have the same key"),
        (lambda b: b[0].update(public_key=BASE), "its fingerprint is not its key's"),
        (lambda b: b[0].update(public_key="00" * 32), "this key makes no secret"),
        (lambda b: b[0].update(public_key="ec" + "ff" * 30 + "7f"), "this key makes no secret"),
        (lambda b: b[0].update(public_key=BASE[:-2] + "80"), "another spelling of a key"),
        (lambda b: b[0].update(public_key="f6" + "ff" * 30 + "7f"), "another spelling of a key"),
        (lambda b: b[0].update(public_key=ALICE.upper()), "'public_key'"),
        (lambda b: b[0].update(public_key=7), "'public_key' is 7; expected 64 digits"),
        (lambda b: b[0].pop("site"), "'name' is null; expected 1 to 64 letters"),
        (lambda b: b[0].update(site="../etc"), "'name' is '../etc'"),
    ],
)
def test_bundles_that_make_no_roster_are_refused_in_a_sentence(bundles, change, said):
    change(bundles)

    with pytest.raises(RosterError, match=r"(Ask|Give) the ") as refused:
        KeyRoster.from_bundles("north", bundles)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "'name'"),
        ('{"name": "north", "sites": 3}', "'sites' is 3; expected a list"),
        ('{"name": "north", "sites": [], "more": 1}', "'more'"),
    ],
)
def test_a_file_that_is_no_roster_is_refused_in_a_sentence(tmp_path, content, said):
    if content is not None:
        (tmp_path / "roster.json").write_text(content)

    with pytest.raises(RosterError, match=said):
        KeyRoster.read(tmp_path / "roster.json")


def test_a_roster_in_another_order_is_refused_and_none_can_be_changed(bundles, tmp_path):
    roster = KeyRoster.from_bundles("north", bundles)
    content = json.loads(roster.canonical())
    content["sites"].reverse()
    (tmp_path / "roster.json").write_text(json.dumps(content))

    with pytest.raises(RosterError, match="not sorted by name"):
        KeyRoster.read(tmp_path / "roster.json")
    with pytest.raises(ValidationError, match="frozen"):
        roster.sites = ()
