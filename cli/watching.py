"""A run on the terminal: what is new, where it is, and what came out."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from base.output import PlainConsole, say
from base.plain import printable
from cli.display import console, live
from server.absences import absences_of
from server.journal import Journal, RunProgress
from server.summary import PROBE_SCORES, probe_score, remarks_on, site_score
from study.pretraining import PRETRAINING

_RECENT_NOTES = 3
_RECENT_ROUNDS = 5
"""By whose time that of the rounds to come is judged."""


class News:
    """What has happened in a run since one last looked."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._stage = ""
        self._round = 0
        self._notes = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the events, JSON-able: stages that began, rounds that ended, and notes."""
        now = self._journal.progress()
        events = [*self._rounds(now), *self._new_notes()]
        if now.stage not in ("", "done", self._stage):
            events.append({"event": "stage", "stage": now.stage, "sites": now.sites})
        self._stage = now.stage
        return events

    def _rounds(self, now: RunProgress) -> Iterator[dict[str, Any]]:
        metrics = self._journal.table("metrics")
        exchanges, outcomes = self._journal.table("exchanges"), self._journal.table("outcomes")
        for number in range(self._round + 1, self._journal.rounds_done() + 1):
            of_round = exchanges[exchanges["round"] == number]
            said = outcomes[outcomes["exchange"].isin(of_round["id"])].groupby("site")["outcome"].last()
            numbers = metrics[(metrics["round"] == number) & (metrics["site"] == "all")].set_index("name")["value"]
            self._round = number
            yield {
                "event": "round",
                "round": number,
                "rounds": now.rounds,
                "sites": {str(site): outcome for site, outcome in said.items()},
                "loss": float(numbers["loss"]) if math.isfinite(numbers.get("loss", math.nan)) else None,
                "seconds": float((of_round["ended"] - of_round["started"]).sum()),
                "bytes_down": int(of_round["bytes_down"].sum()),
                "bytes_up": int(of_round["bytes_up"].fillna(0).sum()),
            }

    def _new_notes(self) -> Iterator[dict[str, Any]]:
        for row in self._journal.table("notes").iloc[self._notes :].itertuples():
            self._notes += 1
            yield {"event": "note", "text": row.text}


@contextmanager
def watching(journal: Journal, out: Console = console, *, as_json: bool = False) -> Iterator[Callable[[], None]]:
    """Yield a function that shows what is new in a run.

    As a table that changes on a terminal, in lines elsewhere, or as a line of JSON for each event on standard output.
    """
    news = News(journal)
    if as_json or not (live() and out.is_terminal):

        def tell() -> None:
            for event in news.read():
                if as_json:
                    print_event(event)
                else:
                    out.print(_line(event), highlight=False, soft_wrap=True)

        yield tell
        tell()
        return
    with Live(_view(journal), console=out, refresh_per_second=2) as shown:
        yield lambda: shown.update(_view(journal))
        shown.update(_view(journal))


def print_event(event: dict[str, Any]) -> None:
    """Print a line of JSON for a script that waits for it."""
    say(json.dumps(event))


def end_of(progress: RunProgress, journal: Journal) -> dict[str, Any]:
    """Return the last event of a run."""
    event = {"event": "end", "status": progress.status, "reason": progress.reason, "folder": str(journal.folder)}
    absences = [asdict(absence) for absence in absences_of(journal)]
    return {**event, "absences": absences} if absences else event


def print_absences(journal: Journal) -> None:
    """Say which sites were not in all of a run, if any."""
    if missing := "; ".join(absence.sentence for absence in absences_of(journal)):
        say(f"Not in all of the run: {printable(missing)}.")


def _line(event: dict[str, Any]) -> str:
    if event["event"] == "note":
        return f"note: {event['text']}"
    if event["event"] == "stage":
        return f"{event['stage']}: {event['sites']} sites" if event["sites"] else str(event["stage"])
    missing = [f"{site}: {said}" for site, said in event["sites"].items() if said != "ok"]
    loss = "" if event["loss"] is None else f", loss {event['loss']:.4f}"
    answered = f"{len(event['sites']) - len(missing)} of {len(event['sites'])} sites"
    return f"pretraining: round {event['round']} of {event['rounds']}, {answered}{loss}" + "".join(
        f"; {one}" for one in missing
    )


def _view(journal: Journal) -> RenderableType:
    """Show where a run is: its stage, its sites with their last answers, and its latest notes."""
    now, exchanges, outcomes = journal.progress(), journal.table("exchanges"), journal.table("outcomes")
    up, down = exchanges["bytes_up"].fillna(0).sum(), exchanges["bytes_down"].sum()
    head = Table.grid(padding=(0, 2))
    head.add_row(f"{now.status}", now.stage, *_how_far(now, journal.rounds_done(), exchanges))
    head.add_row("", "", f"up {_size(up)}", f"down {_size(down)}")
    sites = Table("site", "last answer", "to", "ago", box=None)
    said = outcomes.merge(exchanges, left_on="exchange", right_on="id")
    # Nodes that said what they are go by their site's name from then on.
    last = said[(said["stage"] != "describe") | (said["outcome"] != "ok")].groupby("site").last()
    for site, row in last.iterrows():
        ago = timedelta(seconds=max(0, round(time.time() - row["ended"])))
        sites.add_row(str(site), row["outcome"], row["stage"], str(ago))
    notes = [f"note: {text}" for text in journal.table("notes")["text"].iloc[-_RECENT_NOTES:]]
    return Group(head, sites, *notes, *([now.reason] if now.reason else []))


def _how_far(now: RunProgress, done: int, exchanges: pd.DataFrame) -> tuple[RenderableType, ...]:
    """How far the stage is: rounds of training take time; how many questions other stages ask is not known."""
    asked = int((exchanges["stage"] == now.stage).sum())
    if now.stage != PRETRAINING:
        return (f"{asked} {'question' if asked == 1 else 'questions'} so far",) if asked else ()
    left = _training_left(now, done, exchanges)
    return (f"round {done} of {now.rounds}", ProgressBar(max(1, now.rounds), done, 30), left)


def _training_left(now: RunProgress, done: int, exchanges: pd.DataFrame) -> str:
    """How long the rounds that are left take, if they take as long as the last ones, with what lies between them.

    The median, since a round may have waited for a site, or for somebody to resume the run.
    """
    if now.status != "running" or not 0 < done < now.rounds:
        return ""
    rounds = exchanges[exchanges["round"].between(1, done)].groupby("round")
    took = rounds["ended"].max() - rounds["ended"].max().shift().fillna(rounds["started"].min())
    seconds = took.iloc[-_RECENT_ROUNDS:].median() * (now.rounds - done)
    return f"{timedelta(seconds=round(seconds))} of training left"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def print_summary(summary: dict[str, Any]) -> None:
    """Print the headline numbers of a completed run."""
    out = PlainConsole()
    pretraining, harmonization, probes = (summary[name] for name in ("pretraining", "harmonization", "probes"))
    before = "start" if "masked_r2_start" in pretraining else "untrained"
    out.print(
        Text.assemble(
            "Masked R² on held-out participants: ",
            (_number(pretraining["masked_r2"]), "bold"),
            f" ({before} {_number(pretraining[f'masked_r2_{before}'])})",
        )
    )
    effects = harmonization.get("site_effect", {})
    columns = {target: _score_of(probes, target) for named in probes.values() for target in named}
    table = Table(title="Held-out, cross-validated inside the sites", title_justify="left")
    recognised = [site_score(measured) for effect in effects.values() for measured in effect.values()]
    for name in ("features", *([recognised[0].title] if recognised else [])):
        table.add_column(name)
    for target, score in columns.items():
        table.add_column(f"{target} ({PROBE_SCORES[score]})")
    for features in dict.fromkeys((*effects, *probes)):
        scores = {variant: site_score(measured) for variant, measured in effects.get(features, {}).items()}
        chance = f", by chance {_number(scores['raw'].by_chance if 'raw' in scores else None)}"
        cells = [_change({name: score.value for name, score in scores.items()}) + chance] if recognised else []
        for target, score in columns.items():
            of_target = probes.get(features, {}).get(target, {})
            cells.append(_change({name: found.get(score) for name, found in of_target.items()}))
        table.add_row(features, *cells)
    if len(table.columns) > 1:
        out.print(table)
    for said in remarks_on(summary["sites"]):
        say(said)
    for caution in summary["cautions"]:
        say(f"Note: {caution}")


def _score_of(probes: dict[str, Any], target: str) -> str:
    """Score by which a target's probes are known."""
    return next(probe_score(next(iter(named[target].values()))) for named in probes.values() if target in named)


def _change(values: dict[str, float | None]) -> str:
    if "harmonized" not in values:
        return _number(values.get("raw"))
    return f"{_number(values.get('raw'))} → {_number(values['harmonized'])}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
