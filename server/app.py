"""The coordinator's Flower ServerApp: the stages of a study, in order."""

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from base.files import save_arrays
from brainlm.evaluation import MODEL
from exchange.messages import AnySumRequest, EmbedRequest, HarmonizeRequest, TrainRequest
from harmonization import Design
from server.answers import Answers
from server.averaging import Checkpoints, averaged, measure_reconstruction, measure_training
from server.errors import JournalError, QuorumError
from server.inquiry import Inquiry
from server.journal import Journal
from server.keeping import hold_study
from server.presence import Presence
from server.reconstruction import write_reconstruction
from server.shown import keep_shown
from server.summary import write_parcels, write_summary
from server.tracking import tracking
from study.comparing import lacking_sites
from study.harmonizing import HARMONIZATION
from study.measuring import MEASURING
from study.pretraining import EMBEDDING, PRETRAINING
from study.program import Program, unlike
from study.settings import Study, load_study
from study.state import Findings, State

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
        presence = Presence(grid, journal, study.averaging, study.privacy)
        journal.note(
            status="running",
            reason="",
            study=study.study,
            rounds=study.averaging.rounds,
            flower_run=str(context.run_id),
        )
        try:
            hold_study(journal)
            findings = run_study(study, presence, journal)
        except Exception as error:
            _fail(study, presence, journal, error)
            raise
        write_summary(study, journal, presence.about, findings)
        journal.note(status="completed", stage="done")
        shutil.rmtree(folder / "answers", ignore_errors=True)


def _fail(study: Study, presence: Presence, journal: Journal, error: Exception) -> None:
    """Leave the reason in the journal and a summary; in the log, too, where the disk takes no more.

    Flower ends a run whose ServerApp raises as failed, but does not say why.
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk is full at {journal.folder}. Free some of it; then go on with 'fedbrainlm run --resume'."
    print(f"fedbrainlm: {reason}", flush=True)
    with suppress(JournalError, OSError):
        journal.fail(reason)
        write_summary(study, journal, presence.about, None)


def run_study(study: Study, presence: Presence, journal: Journal) -> Findings:
    """Run all stages of a study."""
    journal.note(stage="gathering the sites")
    opening = study.opening(study.averaging.rounds - journal.last_round())
    noisy_sums = max(0, study.frame_sums - journal.last_question(MEASURING))
    presence.gather(opening.model_copy(update={"noisy_sums": noisy_sums}))
    _check_sites(study, presence, journal)
    run = Run(Program(study), Inquiry(presence, study.privacy.max_attempts), journal)
    checkpoints = Checkpoints(study, journal)
    state = run.program.begin(presence.about, checkpoints.first())
    journal.note(stage="measuring the recordings", sites=len(presence.sites))
    state = run.through(MEASURING, state)
    _keep_measures(study, journal, state)
    journal.note(stage="pretraining", sites=len(presence.sites))
    with tracking(journal) as track:

        def after_round(state: State) -> None:
            checkpoints.save(state)
            track()

        state = run.program.resume(state, *checkpoints.last(state))
        state = run.through(PRETRAINING, state, after_round)
        journal.note(stage="embedding")
        state = run.through(EMBEDDING, state)
        track()
    journal.note(stage="harmonization")
    state = run.through(HARMONIZATION, state)
    for why, what in state.findings.left_out_by_reason().items():
        journal.say(f"left out: {', '.join(what)}: {why}")
    return run.program.findings(state)


@dataclass(frozen=True)
class Run:
    """A program, asked of the sites; every answer is kept before it is used, and is there when the run is resumed."""

    program: Program
    inquiry: Inquiry
    journal: Journal

    def through(self, stage: str, state: State, after: Callable[[State], object] = lambda state: None) -> State:
        """Ask all questions of a stage, and call `after` with the state that follows from each."""
        while (asked := self.program.ask(state)) is not None and asked.stage == stage:
            try:
                answers = self.inquiry.ask(asked)
            except QuorumError as error:
                if not asked.optional:
                    raise
                self.journal.say(f"{stage}: {error}")
                state = self.program.advance(state, (), {})
                continue
            total = averaged(self.program.study.averaging, asked.request, answers)
            state = self.program.advance(state, answers.replies, total)
            self.inquiry.presence.keep(state.sites)
            self._keep(asked.request, answers)
            after(state)
        return state

    def _keep(self, request: AnySumRequest, answers: Answers) -> None:
        """Write what answers tell beside their sums, and what all sites share: scores, and models that were applied."""
        study, journal = self.program.study, self.journal
        if isinstance(request, TrainRequest):
            measure_training(journal, request.round_number, answers)
            measure_reconstruction(journal, request.round_number - 1, answers)
        elif isinstance(request, EmbedRequest):
            found = measure_reconstruction(journal, study.averaging.rounds, answers)
            if MODEL in found:
                write_parcels(study, journal, found[MODEL])
                write_reconstruction(study, journal.folder, {MODEL: found[MODEL], **found})
        elif isinstance(request, HarmonizeRequest):
            keep_shown(journal.folder, answers.replies)
            for step in request.steps:
                about = {**step.model_dump(), "columns": Design.from_json(step.covariates).columns}
                path = journal.folder / "harmonization" / f"{step.result}.safetensors"
                save_arrays(path, request.part(step.result), about)


def _check_sites(study: Study, presence: Presence, journal: Journal) -> None:
    """Go on with the sites whose vectors go together, and say before training what they are too few for."""
    left_out = unlike(study, presence.about)
    for site, why in left_out.items():
        journal.say(f"{site} is left out: {why}")
        journal.leave_out(site, "describe", why)
    presence.keep(presence.about.keys() - left_out.keys())
    for one in lacking_sites(study, len(presence.sites)):
        journal.say(f"{one.measure.name}: will be left out, since {one.why}")


def _keep_measures(study: Study, journal: Journal, state: State) -> None:
    """Write what was measured to ``scaling/`` and ``moments/`` of the run's folder."""
    about = {"study": study.study, "seed": study.seed, "scaling": study.model.window.scaling}
    for part in ("scaling", "moments"):
        for atlas in dict.fromkeys(name.partition("/")[0] for name in state.part(part)):
            arrays = state.part(f"{part}/{atlas}")
            save_arrays(journal.folder / part / f"{atlas}.safetensors", arrays, about)
