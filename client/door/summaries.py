"""Sums of the analyses at the site, and whose data they are about."""

from base.settings import check_settings
from brainlm.config import SummaryNoise, WindowConfig
from client.door.disclosure import permit_declared, permit_sums
from client.door.ledger import Release, question_of_job
from client.door.limits import permit_job
from client.door.noise import add_with_noise, summarize_with_noise
from client.door.release import Answer
from client.door.spending import Spend
from client.features import FeatureStore, Table, find_table
from client.frames import Frames, read_frames, scaling_of
from client.site import Site
from exchange.messages import Arrays, FrameSpec, Job, SummarizeReply, SummarizeRequest, TableSpec, join
from exchange.refusals import Refusal, RefusalCode
from harmonization import Analysis, SecondMoments, State, add_sums, make_analysis
from harmonization.core.protocol import Sums


def summarize(site: Site, request: SummarizeRequest) -> Answer:
    """Sum what each job of the request asks for that is about this site."""
    site.policy.permit(request.study, [job.analysis for job in request.jobs.values()])
    site.policy.permit_size("jobs", len(request.jobs), "jobs in one message")
    sums: dict[str, Arrays] = {}
    releases: list[Release] = []
    spends: list[Spend] = []
    store = FeatureStore(site.folder_of(request.study), request.run)
    for name, job in request.jobs.items():
        if isinstance(job.table, FrameSpec) and job.table.atlas != site.cohort.atlas.name:
            continue
        analysis = make_analysis(job.analysis, job.parameters)
        site.policy.permit(request.study, analysis.asks_for)
        permit_job(site.policy, job, analysis)
        _permit_rows(job, analysis)
        state = analysis.read_state(job.state, request.part(name)) if job.state else None
        summed, release, spend = _sum(site, store, request, name, analysis, state)
        sums[name], releases, spends = dict(summed), [*releases, release], [*spends, *spend]
    # A site that shares its atlas with nobody has nothing to add before training.
    n_behind = min((len(release.participants) for release in releases), default=len(site.cohort.participants))
    return Answer(SummarizeReply(arrays=join(**sums)), n_behind, tuple(releases), tuple(spends))


def _permit_rows(job: Job, analysis: Analysis) -> None:
    """Refuse an analysis of other rows or targets than its own, or of frames that only some recordings have."""
    if isinstance(job.table, TableSpec) and job.table.target == "site" and not analysis.shows_one_site:
        # One column a site: products with any other column would be one site's own sums.
        raise Refusal(RefusalCode.PROTOCOL, f"analysis '{job.analysis}' has no use for the site as a target.")
    if analysis.rows != ("frames" if isinstance(job.table, FrameSpec) else "participants"):
        # Over participants, the counts behind a quantile would lead to a single one's value.
        raise Refusal(RefusalCode.PROTOCOL, f"analysis '{job.analysis}' is of {analysis.rows} alone.")
    if isinstance(analysis, SecondMoments) and isinstance(job.table, FrameSpec):
        # Lags that only some recordings are long enough for would tell those apart.
        longest = check_settings(job.table.window, WindowConfig, "the study's window").n_frames
        if analysis.n_lags > longest:
            raise Refusal(RefusalCode.PROTOCOL, f"{analysis.n_lags} lags were asked for; a window has {longest}.")


def _sum(
    site: Site, store: FeatureStore, request: SummarizeRequest, name: str, analysis: Analysis, state: State | None
) -> tuple[Sums, Release, list[Spend]]:
    """Sums of one job, whose data they are about, and what they cost of the privacy budget."""
    job = request.jobs[name]
    noise = None if request.noise is None else check_settings(request.noise, SummaryNoise, "the study's summary noise")
    rows: Frames | Table
    if isinstance(job.table, FrameSpec):
        rows = read_frames(site, job.table, scaling_of(site, request))
    else:
        rows = find_table(site, request.study, job.table, store)
    n_participants, declared = len(rows.participants), analysis.sends(rows.widths, state)
    permit_declared(site.policy, analysis, declared, n_participants)
    summed, spends = _add(rows, analysis, state, noise)
    permit_sums(site.policy, analysis, declared, summed, n_participants, clear=request.secure is None)
    question = question_of_job(job, rows.data)
    return summed, Release(question, rows.participants, (name,), accounted=noise is not None), spends


def _add(
    rows: Frames | Table, analysis: Analysis, state: State | None, noise: SummaryNoise | None
) -> tuple[Sums, list[Spend]]:
    """Sums over the rows, and what they cost of the privacy budget where they carry noise."""
    if isinstance(rows, Table):
        if noise is None:
            return analysis.summarize(rows.rows, state), []
        summed, spend = summarize_with_noise(analysis, rows.rows, state, noise)
        return summed, [spend]
    by_person = (add_sums(analysis.summarize(table, state) for table in tables) for tables in rows.tables)
    if noise is None:
        return add_sums(by_person), []
    summed, spend = add_with_noise(by_person, noise)
    return summed, [spend]
