"""A coordinator that follows the protocol, and looks at every byte that it receives.

It sees all requests and all replies, and knows the roster's public keys; it has no site's private key.
"""

import json
import shutil
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare

from client.site import load_site
from cohorts import Cohort
from exchange.messages import DescribeRequest, EmbedRequest, HarmonizeRequest, Step, SummarizeReply
from exchange.refusals import Refusal, RefusalCode
from exchange.ring import encode
from tests.attacks.coordinator import SUMS, Coordinator, features_of, write_careful_sites
from tests.support.federation import features
from tests.support.wire import as_bytes

WIDE = 3000
"""Features of a site: enough words for a chi-square over their bytes."""
ONE = np.ones(1, np.uint64)
SECRET = "sub-0042 of /data/patients, aged 33"


def p_value(words: np.ndarray) -> float:
    """How likely uniform bytes are less even than these."""
    return float(chisquare(np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)).pvalue)


def test_all_that_a_run_sends_is_uniform_and_so_is_all_of_two_sites_of_three(finished_run):
    """Every masked word of a study, from the moments before training to the last count; alone, and with another's."""
    alone, but_one = defaultdict(list), defaultdict(list)
    exchanges = defaultdict(list)
    for message in finished_run.grid.received:
        for name, array in message.content["arrays"].items():
            if name.startswith("sealed/"):
                alone[array.dtype].append(array.numpy())
                exchanges[message.content["header"]["kind"], name, array.shape].append(array.numpy())
    for words in exchanges.values():
        for first in range(0, len(words) - 2, 3):
            but_one[str(words[first].dtype)].append(words[first] + words[first + 1])

    assert alone.keys() == but_one.keys() == {"uint32", "uint64"}
    for seen in (alone, but_one):
        for dtype, words in seen.items():
            assert p_value(np.concatenate(words)) > 1e-6, dtype


def worlds(folder, cohorts, *, same_keys: bool) -> list[Coordinator]:
    """Two federations that differ in the features of one site alone; with the same keys, in their masks in nothing."""
    made = []
    for number, seed in enumerate((1, 2)):
        place = folder / str(number)
        if number and same_keys:
            for name in made[0].names:
                state = made[0].sites[name].parent / "state"
                for kept in ("x25519.key", "rosters", "audit.jsonl"):
                    (place / name / "state").mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if (state / kept).is_dir() else shutil.copy
                    copy(state / kept, place / name / "state" / kept)
        sites = write_careful_sites(place, cohorts, width=WIDE, seed=0)
        write_careful_sites(place, cohorts[:1], width=WIDE, seed=seed)
        made.append(Coordinator(sites))
    return made


def words_of(coordinator: Coordinator, site: str) -> np.ndarray:
    reply = coordinator.ask(site, coordinator.sums())
    assert isinstance(reply, SummarizeReply)
    return reply.arrays["sealed/0/64"]


@pytest.mark.parametrize("same_keys", [True, False])
def test_two_worlds_are_told_apart_by_who_knows_the_masks_and_by_nobody_else(tmp_path, four_cohorts, same_keys):
    """The site's data are swapped entirely: under known masks replies differ by the data, to the bit; else by noise.

    The other sites' replies do not depend on that site's data at all.
    """
    one, two = worlds(tmp_path, four_cohorts, same_keys=same_keys)
    changed, *others = one.names
    difference = words_of(one, changed) - words_of(two, changed)

    data = [
        # The last word of a ring is the same at all sites: it tells whether masks cancelled.
        np.append(np.concatenate([encode(part, "sum", 4) for part in (x.sum(axis=0), np.array([float(len(x))]))]), ONE)
        for x in (features_of(world.sites[changed]) for world in (one, two))
    ]
    assert np.array_equal(difference, data[0] - data[1]) is same_keys
    assert (p_value(difference) > 1e-6) is not same_keys
    for other in others:
        assert np.array_equal(words_of(one, other), words_of(two, other)) is same_keys


def test_all_messages_but_one_are_uniform_together(tmp_path, four_cohorts):
    """Also side by side: each pair of sites' words, and sums and differences of any of them, but for the sum of all."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, width=WIDE))
    words = [words_of(coordinator, name) for name in coordinator.names]

    a, b, c, d = words
    for seen in (a, b, c, d, a + b, a - b, a + b + c, a + c + d, b - c + d, a ^ b, a * np.uint64(3) - c):
        assert p_value(seen) > 1e-6
    assert p_value(a + b + c + d) < 1e-100


# --- no leaks beside the numbers --------------------------------------------------------------------------------------


def test_no_byte_of_a_run_holds_an_id_a_path_or_an_embedding(finished_run):
    """All replies of a study, as they are on the wire: headers, names of arrays, metadata and arrays."""
    wire = b"\n".join(as_bytes(message) for message in finished_run.grid.received)
    assert len(wire) > 1e5
    for path in finished_run.sites:
        site = load_site(path)
        cohort = Cohort.open(site.settings.cohort)
        ids = {*cohort.covariates()["participant_id"], *pd.Series(cohort.recordings["recording_id"])}
        assert len(ids) > 10
        secrets = [*ids, str(path.parent), str(site.settings.cohort), site.cohort.name + "/"]
        secrets += [(site.state / "private_seed").read_text(), (site.state / "x25519.key").read_bytes().hex()]
        assert not [secret for secret in secrets if secret.encode() in wire]
        embeddings = features(path, "embedding").filter(regex=r"^e\d+$").to_numpy()
        assert not [row for row in embeddings if row.tobytes() in wire]
        assert (site.state / "x25519.key").read_bytes().strip() not in wire


def requests(coordinator: Coordinator) -> dict[str, DescribeRequest | EmbedRequest | HarmonizeRequest]:
    step = Step(source="x", result="y", transform="projection", model="ProjectionModel")
    about = {"study": "small", "secure": coordinator.secure()}
    describe = {"contract": {}, "window": {}, "analyses": [], "recipe": "r", "holdout": 0.2, "folds": 1}
    return {
        "app._describe": DescribeRequest(study="small", **describe),
        "training.train": coordinator.training(),
        "app._embed": EmbedRequest(**about, model={}, recipe="r", holdout=0.2, seed=1),
        "door.summaries.summarize": coordinator.sums(),
        "app._harmonize": HarmonizeRequest(**about, steps=[step]),
    }


@pytest.mark.parametrize(
    "handler", ["app._describe", "training.train", "app._embed", "door.summaries.summarize", "app._harmonize"]
)
def test_no_error_of_a_handler_crosses_with_its_text(coordinator, monkeypatch, handler):
    """Flower sends the text of an exception to the coordinator; whatever is raised, ours leaves as a code."""
    request = requests(coordinator)[handler]
    errors = [Exception(SECRET), KeyError(SECRET), OSError(2, SECRET, SECRET), Refusal(RefusalCode.GROUP, SECRET)]
    for error in [*errors, RecursionError(SECRET), UnicodeError(SECRET), MemoryError()]:

        def fail(*_: object, error: Exception = error) -> None:
            raise error from ValueError(SECRET)

        monkeypatch.setattr(f"client.{handler}", fail)
        reply = coordinator.send("aalborg", request.to_records(), request.message)
        wire = as_bytes(reply)
        assert reply.error.reason in list(RefusalCode)
        assert b"sub-0042" not in wire
        assert b"patients" not in wire
        assert str(coordinator.sites["aalborg"].parent).encode() not in wire


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


def test_an_error_whose_text_cannot_be_had_is_a_code_too(coordinator, monkeypatch):
    def fail(*_: object) -> None:
        raise SpeechlessError

    monkeypatch.setattr("client.door.summaries.summarize", fail)
    assert coordinator.code(coordinator.sums()) is RefusalCode.DATA
    log = (coordinator.sites["aalborg"].parent / "state" / "site.log").read_text()
    assert "site.internal-error: SpeechlessError" in log


def test_refusals_are_the_same_bytes_whatever_the_reason_at_the_site(coordinator):
    """Only the code differs: no number of people, no name of a column and no path stands beside it."""
    few = {"projection": SUMS["projection"].model_copy(update={"analysis": "ridge"})}
    reply = coordinator.send("aalborg", coordinator.sums(jobs=few).to_records(), "query.summarize")

    assert reply.has_error()
    assert not reply.has_content()
    assert json.loads(json.dumps(vars(reply.error))).keys() <= {"_code", "_reason"}
