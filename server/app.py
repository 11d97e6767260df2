"""The coordinator's Flower ServerApp: the stages of a study, in order."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from brainlm.evaluation import MODEL
from exchange.messages import Arrays, DescribeRequest, EmbedReply, EmbedRequest, join, part_of
from server.answers import Answers
from server.averaging import evaluation_groups, measure_reconstruction, pretrain
from server.errors import JournalError
from server.harmonizing import Findings, Harmonizing
from server.journal import Journal
from server.measuring import Measures, measure
from server.reconstruction import baselines_of, write_reconstruction
from server.roster import Roster
from server.study import Study, load_study
from server.summary import write_parcels, write_summary
from server.tracking import tracking

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that lies in the run's folder, and leave a summary there however it ends.

    A run that did not come to its end goes on where it was: see `server.answers`.
    """
    folder = Path(str(context.run_config["run-directory"]))
    journal = Journal(folder)
    with journal.at_work():
        study = load_study(folder / "study.yaml")
        roster = Roster(grid, journal, study.averaging, study.privacy)
        journal.note(
            status="running",
            reason="",
            study=study.study,
            rounds=study.averaging.rounds,
            flower_run=str(context.run_id),
        )
        try:
            findings = run_study(study, roster, journal)
        except Exception as error:
            _fail(study, roster, journal, error)
            raise
        write_summary(study, journal, roster.about, findings)
        journal.note(status="completed", stage="done")
        shutil.rmtree(folder / "answers", ignore_errors=True)


def _fail(study: Study, roster: Roster, journal: Journal, error: Exception) -> None:
    """Leave the reason in the journal and a summary; in the log, too, where the disk takes no more.

    Flower ends a run whose ServerApp raises as failed, but does not say why.
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk is full at {journal.folder}. Free some of it; then go on with 'fedbrainlm run --resume'."
    print(f"fedbrainlm: {reason}", flush=True)
    with suppress(JournalError, OSError):
        journal.note(status="failed", reason=reason)
        write_summary(study, journal, roster.about, None)


def run_study(study: Study, roster: Roster, journal: Journal) -> Findings:
    """Run all stages of a study.

    Raises
    ------
    ServerError
        If a stage cannot end well; the message is the reason.
    """
    journal.note(stage="gathering the sites")
    roster.gather(_describe(study, journal))
    journal.note(stage="measuring the recordings", sites=len(roster.members))
    measures = measure(study, roster, journal)
    journal.note(stage="pretraining", sites=len(roster.members))
    with tracking(journal) as track:
        weights = pretrain(study, roster, journal, measures, track)
        journal.note(stage="embedding")
        answers = _embed(study, roster, journal, weights, measures)
        track()
    journal.note(stage="harmonization")
    n_participants = int(answers.total["tally/n_participants"])
    dimensions, lacking = _measured_together(roster, answers)
    return Harmonizing(study, roster, journal, dimensions, n_participants, lacking).run()


def _measured_together(roster: Roster, answers: Answers[EmbedReply]) -> tuple[dict[str, int], Arrays]:
    """Feature sets that are the same at all sites, and their sizes; and at how many sites somebody lacks a feature."""
    described = [reply.dimensions for reply in answers.replies.values()]
    dimensions = {name: size for name, size in described[0].items() if all(d.get(name) == size for d in described)}
    atlases = {roster.about[site].atlas for site in answers.replies}
    if len(atlases) > 1:  # connectivity of another atlas has other edges, even if as many
        return {name: size for name, size in dimensions.items() if name != "connectivity"}, {}
    return dimensions, part_of(answers.total, f"lacking/{atlases.pop()}")


def _describe(study: Study, journal: Journal) -> DescribeRequest:
    asked = study.introduction(study.averaging.rounds - journal.last_round())
    return asked.model_copy(update={"contract": study.contract().model_dump(mode="json")})


def _embed(study: Study, roster: Roster, journal: Journal, weights: Arrays, measures: Measures) -> Answers[EmbedReply]:
    """Let every site embed its participants with the final model; go on with the sites that did."""
    request = EmbedRequest(
        arrays=join(weights=weights, **measures.scaling_parts(), **measures.moments_parts()),
        study=study.study,
        groups=evaluation_groups(roster),
        model=study.model.model_dump(mode="json"),
        recipe=study.recipe,
        holdout=study.training.holdout,
        seed=study.seed,
    )
    answers = roster.ask(request, EmbedReply, "embedding")
    roster.keep(answers.replies)
    by_atlas = measure_reconstruction(journal, study.averaging.rounds, answers)
    if by_atlas:
        write_parcels(study, journal, by_atlas)
        write_reconstruction(study, journal.folder, {MODEL: by_atlas, **baselines_of(answers.total)})
    return answers
