"""The coordinator's Flower ServerApp: the stages of a study, in order."""

import errno
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from brainlm.embedding import feature_sizes
from brainlm.evaluation import MODEL
from exchange.messages import Arrays, DescribeRequest, EmbedReply, EmbedRequest, join, part_of
from server.answers import Answers
from server.averaging import evaluation_groups, measure_reconstruction, pretrain
from server.comparing import lacking_sites
from server.errors import JournalError, StudyError
from server.expecting import of_embedding
from server.harmonizing import Findings, Harmonizing
from server.journal import Journal
from server.measuring import Measures, measure, n_sums
from server.reconstruction import baselines_of, write_reconstruction
from server.roster import Roster
from server.summary import write_parcels, write_summary
from server.tracking import tracking
from study.settings import Study, load_study

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
        journal.fail(reason)
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
    _check_sites(study, roster, journal)
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
    dimensions, lacking = _measured_together(study, roster, answers.total)
    return Harmonizing(study, roster, journal, dimensions, n_participants, lacking).run()


def _measured_together(study: Study, roster: Roster, total: Arrays) -> tuple[dict[str, int], Arrays]:
    """Feature sets that are the same at all sites, and their sizes; and at how many sites somebody lacks a feature."""
    atlases = roster.atlases
    atlas, n_parcels = next(iter(atlases.items()))
    dimensions = feature_sizes(study.model, n_parcels)
    if len(atlases) > 1:  # connectivity of another atlas has other edges, even if as many
        del dimensions["connectivity"]
        return dimensions, {}
    return dimensions, part_of(total, f"lacking/{atlas}")


def _check_sites(study: Study, roster: Roster, journal: Journal) -> None:
    """Say before training what the sites that came are too few for, and go on with those whose vectors go together.

    Raises
    ------
    StudyError
        If the site that the others are to be made like is not among them, or too few have vectors that go together.
    """
    if study.association is not None:
        _keep_alike(study, roster, journal)
    reference = study.harmonization.reference
    if reference is not None and reference not in roster.sites:
        raise StudyError(f"harmonization.reference: site '{reference}' does not take part. Name another.")
    for what, why in lacking_sites(study, len(roster.sites)).items():
        journal.say(f"{what}: will be left out, since {why}")


def _keep_alike(study: Study, roster: Roster, journal: Journal) -> None:
    """Leave out the sites whose vectors have other dimensions than those of most."""
    assert study.association is not None, "only studies with vectors associate them"
    found = {site: about.n_vector_dimensions for site, about in roster.about.items()}
    ((most, n_alike),) = Counter(found.values()).most_common(1)
    if n_alike == len(found):
        return
    vectors, listed = study.association.vectors, ", ".join(f"{site} {number}" for site, number in found.items())
    if n_alike < study.averaging.quorum or 2 * n_alike <= len(found):
        raise StudyError(f"vectors '{vectors}' have other dimensions at each site ({listed}). Use one model for all.")
    for site, number in found.items():
        if number != most:
            journal.say(f"{site} is left out: its vectors '{vectors}' have {number} dimensions; most have {most}")
            journal.leave_out(site, "describe", f"vectors of {number} dimensions, and not {most}")
    roster.keep([site for site, number in found.items() if number == most])


def _describe(study: Study, journal: Journal) -> DescribeRequest:
    asked = study.opening(study.averaging.rounds - journal.last_round())
    return asked.model_copy(update={"noisy_sums": n_sums(study, journal)})


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
    answers = roster.ask(request, EmbedReply, of_embedding(request, study.model, roster.atlases), "embedding")
    roster.keep(answers.replies)
    by_atlas = measure_reconstruction(journal, study.averaging.rounds, answers)
    if by_atlas:
        write_parcels(study, journal, by_atlas)
        write_reconstruction(study, journal.folder, {MODEL: by_atlas, **baselines_of(answers.total)})
    return answers
