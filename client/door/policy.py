"""What a hospital allows. Read from its own disk; nothing that arrives can change it."""

from collections.abc import Collection, Iterable
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from base.settings import Settings
from client.errors import SignatureError
from client.keys.signatures import key_fingerprint, public_key
from exchange.refusals import Refusal, RefusalCode
from harmonization.core.registry import ANALYSES, is_ours

EVERYTHING = "*"
SHOWS_ONE_SITE = frozenset(
    {"leave_one_site_out", "reference_site", *(name for name, known in ANALYSES.items() if known.shows_one_site)}
)
"""What shows a single site's sums even through secure ones, by subtraction, or because the sums have a place for each
site: allowed only where it is named."""


def must_be_named(analysis: str) -> bool:
    """Whether ``"*"`` does not stand for an analysis: what shows one site, or came with another package than this."""
    return analysis in SHOWS_ONE_SITE or not is_ours(analysis)


def every_analysis() -> list[str]:
    """Name all that `Policy.analyses` can allow."""
    return [EVERYTHING, *sorted(filter(must_be_named, SHOWS_ONE_SITE | ANALYSES.keys()))]


class Policy(Settings):
    """The hospital's limits. The defaults refuse every study until the administrator names one."""

    studies: tuple[str, ...] = ()
    """Studies that may run here, by name; ``"*"`` for any."""
    approvers: tuple[str, ...] = ()
    """Public keys of the people who may approve an app, lines of OpenSSH's ``ssh-ed25519``: an approval is then a
    signature. None: whoever may run commands as the site's user approves."""
    min_approvers: int = Field(default=1, ge=1, strict=True)
    """How many of them must have signed an app before the SuperNode runs it."""
    analyses: tuple[str, ...] = (EVERYTHING,)
    """What they may compute: ``pretraining``, ``embedding`` and names of analyses. ``"*"`` for all but those of other
    packages and those that show a single site's sums even where sums are secure, which must be named:
    ``leave_one_site_out`` each site's own, ``reference_site`` the means of the site that others are made like,
    ``site_classification``, ``site_network`` and ``site_adversarial`` each site's mean features."""
    recipes: tuple[str, ...] = (EVERYTHING,)
    """Embedding recipes that may run, by id; ``"*"`` for all."""
    vectors: tuple[str, ...] = ()
    """Second tables of vectors that studies may use, by name; ``"*"`` for any."""
    min_participants: int = Field(default=10, ge=1, strict=True)
    """Fewest participants of the site that must take part in an answer. Scores of held-out ones, which go with a model
    update, are asked for ``min_group`` of them."""
    min_group: int = Field(default=5, ge=1, strict=True)
    """Fewest participants, or none, whom a sum counts of: those held out of training, a fold, a level of a category,
    each column of the covariates, a class, a parcel that only some recordings have. It is asked of who is counted, and
    not of how a state that the coordinator sends weighs them."""
    columns: tuple[str, ...] = ("age", "sex", "mean_fd", "tsnr")
    """Covariates and targets that studies may use, by name; ``"*"`` for all of the cohort's. ``site`` is always one."""
    max_covariate_ratio: float = Field(default=0.33, gt=0, le=1, strict=True)
    """Most columns of covariates for each participant behind them."""
    secure_sum_required: bool = True
    """Let sums and model updates leave only inside a secure sum."""
    min_sites: int = Field(default=3, ge=3, strict=True)
    """Fewest sites in a secure sum."""
    max_attempts: int = Field(default=2, ge=1, strict=True)
    """Most attempts at one secure sum, and most sets of sites among which the site answers one question about the same
    participants. Another analysis of the same data is another question."""
    plain_grams: bool = False
    """Let second moments of as many columns as participants, or more, leave without a secure sum."""
    min_change: int = Field(default=10, ge=1, strict=True)
    """Fewest participants by which a cohort must have changed before the site answers about the same data again."""
    max_rounds: int = Field(default=1000, ge=0, strict=True)
    """Most rounds of training of one study."""
    max_releases: int = Field(default=100_000, ge=0, strict=True)
    """Most answers to one study: each analysis in each of its rounds is one. What ``describe`` and ``harmonize`` answer
    is not counted."""
    max_steps: int = Field(default=10_000, ge=1, strict=True)
    """Most training steps of a round."""
    max_seconds: int = Field(default=21_600, ge=1, strict=True)
    """Longest that an answer of a deployed site may take to be computed, in seconds."""
    max_parameters: int = Field(default=1_000_000_000, ge=1, strict=True)
    """Most weights of a model."""
    max_memory_gb: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """Most memory of a process that answers, in GB."""
    max_levels: int = Field(default=200, ge=1, strict=True)
    """Most levels of a category, and most covariates."""
    max_jobs: int = Field(default=2000, ge=1, strict=True)
    """Most analyses in one message."""
    max_components: int = Field(default=4096, ge=1, strict=True)
    """Most components, folds, draws, rounds, or anything else that is counted, of one analysis."""
    max_refusals: int = Field(default=20, ge=0, strict=True)
    """Most refusals of one study for reasons that lie in the participants' data; then all its questions are refused."""
    privacy_required: bool = False
    """Let model updates leave only with differential privacy."""
    epsilon: float | None = Field(default=None, gt=0, le=500, strict=True)
    """Most privacy loss of a study, by its answers that carry noise; a study that trains without privacy is then
    refused, one whose rounds to come would pass it, and any sum without noise that `outside_epsilon` does not name.
    None for no limit."""
    outside_epsilon: tuple[str, ...] = ()
    """What may leave without noise although `epsilon` is set, and tell of the same people beyond it: ``evaluation``,
    of a model on people who were held out, and names of analyses."""
    delta: float = Field(default=1e-5, ge=1e-10, lt=1, strict=True)
    """Chance at which ``epsilon`` may fail. Where privacy is required or has a budget, a study that reckons with a
    larger one is refused."""
    share_metrics: bool = False
    """Let the site's own loss and scores leave, beside those of all sites together."""
    share_parameters: bool = False
    """Let the site's own shift and scale in each feature leave."""
    share_embeddings: bool = False
    """Let features leave, a row a participant, under pseudonyms: a study's last embeddings, or what the coordinator
    calls so."""
    share_reasons: bool = False
    """Let the rule leave by which a question was refused also where it lies in the participants' data: for simulated or
    public data, since who may ask much learns those from what is refused."""

    @field_validator("approvers", mode="before")
    @classmethod
    def _are_keys(cls, approvers: Any) -> Any:
        if isinstance(approvers, int):
            raise ValueError(
                f"approvers is {approvers}, a number of names, which anybody can give. List the public keys of the "
                "people, and set min_approvers."
            )
        return approvers

    @model_validator(mode="after")
    def _approvers_can_be_had(self) -> Self:
        try:
            known = {key_fingerprint(public_key(line)) for line in self.approvers}
        except SignatureError as error:
            raise ValueError(f"approvers: {error}") from None
        if len(known) < len(self.approvers):
            raise ValueError("approvers lists a key twice. Give each person's once.")
        if self.min_approvers > max(1, len(known)):
            raise ValueError(
                f"min_approvers is {self.min_approvers}, and approvers lists {len(known)} keys. Two people are told "
                "apart by keys alone: list as many."
            )
        return self

    # What a permit… does not permit it raises as a Refusal, which names the rule, its value, and the remedy.

    def permit(self, study: str, analyses: Iterable[str] = (), recipe: str | None = None) -> None:
        """Refuse what is not allowed, before anything is computed."""
        if not _allows(self.studies, study):
            raise Refusal(RefusalCode.STUDY, f"study '{study}' is not in policy.studies of site.yaml.")
        for analysis in analyses:
            if not _allows(self.analyses, analysis) or (must_be_named(analysis) and analysis not in self.analyses):
                raise Refusal(RefusalCode.ANALYSIS, f"'{analysis}' is not in policy.analyses of site.yaml.")
        if recipe is not None and not _allows(self.recipes, recipe):
            raise Refusal(RefusalCode.RECIPE, f"recipe '{recipe}' is not in policy.recipes of site.yaml.")

    def permit_vectors(self, name: str) -> None:
        """Refuse a second table that is not named."""
        if not _allows(self.vectors, name):
            raise Refusal(RefusalCode.ANALYSIS, f"vectors '{name}' are not in policy.vectors of site.yaml.")

    def permit_column(self, name: str) -> None:
        """Refuse a covariate or target that is not named."""
        if not _allows(self.columns, name):
            raise Refusal(
                RefusalCode.COLUMN,
                f"column '{name}' is not in policy.columns of site.yaml, which names "
                f"{', '.join(self.columns) or 'none'}. Add it if studies may use it.",
            )

    def permit_columns(self, names: Iterable[str], known: Collection[str]) -> None:
        """Refuse covariates and targets that are not named, or not `known`: among the cohort's covariates.

        Ids are never among those, so that a sum cannot be asked over people picked by name.
        """
        for name in names:
            self.permit_column(name)
            if name not in known:
                raise Refusal(
                    RefusalCode.COLUMN,
                    f"column '{name}' is not among the cohort's covariates. Add it to them, or leave it out of the "
                    "study.",
                )

    def permit_covariates(self, n_columns: int, n_participants: int) -> None:
        """Refuse so many covariates that they nearly tell participants apart."""
        if n_columns > self.max_covariate_ratio * n_participants:
            raise Refusal(
                RefusalCode.RATIO,
                f"{n_columns} columns of covariates for {n_participants} participants are more than "
                f"policy.max_covariate_ratio, {self.max_covariate_ratio:g}, allows. Use fewer covariates.",
            )

    def permit_group(self, n_participants: int, what: str) -> None:
        """Refuse an answer with a part that too few stand behind."""
        if n_participants < self.min_group:
            raise Refusal(
                RefusalCode.GROUP,
                f"{n_participants} participants stand behind {what}; policy.min_group is {self.min_group}.",
            )

    def told(self, n_participants: int) -> int | None:
        """How many participants something is said of in the clear: none, or as many as no number stands for too few."""
        return n_participants if n_participants == 0 or n_participants >= self.min_group else None

    def permit_release(self, n_participants: int, *, carries_sums: bool, in_secure_sum: bool) -> None:
        """Refuse to let out what too few stand behind, or a plain sum where only secure ones may leave."""
        if n_participants < self.min_participants:
            raise Refusal(
                RefusalCode.PARTICIPANTS,
                f"{n_participants} participants stand behind the answer; policy.min_participants is "
                f"{self.min_participants}.",
            )
        if carries_sums:
            self.permit_sum(in_secure_sum=in_secure_sum)

    def permit_sum(self, *, in_secure_sum: bool) -> None:
        """Refuse a plain sum where only secure ones may leave."""
        if self.secure_sum_required and not in_secure_sum:
            raise Refusal(
                RefusalCode.PLAIN,
                "policy.secure_sum_required is true, and this answer would leave as a plain sum. Set it to false only "
                "for simulated or public data, or where every site trusts the coordinator with its sums.",
            )

    def permit_sites(self, n_sites: int) -> None:
        """Refuse a secure sum in which each site could be seen through."""
        if n_sites < self.min_sites:
            raise Refusal(
                RefusalCode.FEW_SITES,
                f"{n_sites} sites take part in a secure sum; policy.min_sites is {self.min_sites}. Find more sites.",
            )

    def permit_attempt(self, attempt: int) -> None:
        """Refuse a further attempt at a secure sum, counted from 1."""
        if attempt > self.max_attempts:
            raise Refusal(
                RefusalCode.ATTEMPT,
                f"attempt {attempt} at a secure sum; policy.max_attempts is {self.max_attempts}. Run the analysis "
                "again with the sites that answer.",
            )

    def permit_site_sets(self, n_sets: int) -> None:
        """Refuse one question among ever other sites: what two answers differ in is one site's."""
        if n_sets > self.max_attempts:
            raise Refusal(
                RefusalCode.SITES,
                f"this would be set {n_sets} of sites among which one question is answered for the same participants; "
                f"policy.max_attempts is {self.max_attempts}. Ask among the same sites as before.",
            )

    def permit_change(self, n_changed: int) -> None:
        """Refuse a second answer for a cohort that is nearly the same: what both differ in is those few people's."""
        if 0 < n_changed < self.min_change:
            raise Refusal(
                RefusalCode.REPEAT,
                f"sums over the same data left before for participants who differ in {n_changed}; policy.min_change "
                f"is {self.min_change}. Wait for more participants, or ask for the same ones as before.",
            )

    def permit_gram(self, n_behind: int, what: str) -> None:
        """Refuse, outside of secure sums, what shows single people: a matrix of as many columns, or small counts."""
        if not self.plain_grams:
            raise Refusal(
                RefusalCode.GRAM,
                f"'{what}' would show single ones of the {n_behind} participants behind it outside of a secure sum; "
                "policy.plain_grams is false. Use a secure sum, or fewer components.",
            )

    def permit_rounds(self, rounds: int) -> None:
        """Refuse more rounds of training of one study."""
        if rounds > self.max_rounds:
            raise Refusal(
                RefusalCode.ROUNDS,
                f"this would be round {rounds} that the site trains for the study; policy.max_rounds is "
                f"{self.max_rounds}. Raise it if the study may go on.",
            )

    def permit_releases(self, releases: int) -> None:
        """Refuse more answers to one study."""
        if releases > self.max_releases:
            raise Refusal(
                RefusalCode.RELEASES,
                f"this would be answer {releases} to the study; policy.max_releases is {self.max_releases}. Raise it "
                "if the study may go on.",
            )

    def permit_refusals(self, refusals: int) -> None:
        """Refuse a study whose questions could not be answered as often as that: each refusal told something."""
        if refusals >= self.max_refusals:
            raise Refusal(
                RefusalCode.REFUSALS,
                f"{refusals} questions of the study could not be answered of the site's participants; "
                f"policy.max_refusals is {self.max_refusals}. Find out in site.log what it asks; raise it if that is "
                "right.",
            )

    def permit_size(
        self,
        limit: Literal["steps", "parameters", "memory_gb", "levels", "jobs", "components"],
        value: float,
        what: str,
    ) -> None:
        """Refuse what would cost the site more than it gives."""
        if value > (most := getattr(self, f"max_{limit}")):
            raise Refusal(
                RefusalCode.LIMIT,
                f"{value:g} {what} are asked for; policy.max_{limit} is {most:g}. Raise it if the study is right.",
            )

    def permit_privacy(self, delta: float | None) -> None:
        """Refuse a study without differential privacy (`delta` None), or with a larger δ than is asked for."""
        if not self.privacy_required and self.epsilon is None:
            return
        if delta is None:
            raise Refusal(
                RefusalCode.PRIVACY,
                "policy.privacy_required or policy.epsilon asks for differential privacy, and the study trains without "
                "it. Let it set training.privacy, or leave both out of the policy.",
            )
        if delta > self.delta:
            raise Refusal(
                RefusalCode.PRIVACY,
                f"the study's delta is {delta:g}; policy.delta is {self.delta:g}. Let the study lower it.",
            )

    def permit_without_noise(self, name: str) -> None:
        """Refuse a sum (an analysis, or ``evaluation``) without noise where the budget is to be all that is told."""
        if self.epsilon is not None and name not in self.outside_epsilon:
            raise Refusal(
                RefusalCode.PRIVACY,
                f"'{name}' would leave without noise, and policy.epsilon is {self.epsilon:g}. Name it in "
                "policy.outside_epsilon if it may tell of the participants beyond that budget.",
            )

    def permit_epsilon(self, spent: float) -> None:
        """Refuse a privacy loss of the study, all its answers together, above its budget."""
        if self.epsilon is not None and spent > self.epsilon:
            raise Refusal(
                RefusalCode.BUDGET,
                f"the study would have spent a privacy loss of {spent:.3g}; policy.epsilon is {self.epsilon:g}. End "
                "the study here, or raise the budget.",
            )

    def permit_sharing(self, what: Literal["metrics", "parameters", "embeddings"]) -> None:
        """Refuse to let out what is the site's own, or its participants', and no sum over sites."""
        if not getattr(self, f"share_{what}"):
            raise Refusal(
                RefusalCode.ANALYSIS,
                f"the site's own {what} were asked for; policy.share_{what} is false. Set it to true to share them.",
            )


def _allows(allowed: tuple[str, ...], name: str) -> bool:
    return EVERYTHING in allowed or name in allowed
