"""What a hospital allows. Read from its own disk; nothing that arrives can change it."""

from collections.abc import Iterable

from pydantic import Field

from cohorts.settings import Settings
from exchange.refusals import Refusal, RefusalCode

EVERYTHING = "*"
SHOWS_ONE_SITE = frozenset({"leave_one_site_out", "reference_site"})
"""What shows a single site's sums even through secure ones, by subtraction: allowed only where it is named."""


class Policy(Settings):
    """The hospital's limits. The defaults refuse every study until the administrator names one."""

    studies: tuple[str, ...] = ()
    """Studies that may run here, by name; ``"*"`` for any."""
    analyses: tuple[str, ...] = (EVERYTHING,)
    """What they may compute: ``pretraining``, ``embedding`` and names of analyses. ``"*"`` for all but
    ``leave_one_site_out``, which shows each site's own sums, and ``reference_site``, which shows the means of the site
    that others are made like: these must be named."""
    recipes: tuple[str, ...] = (EVERYTHING,)
    """Embedding recipes that may run, by id; ``"*"`` for all."""
    vectors: tuple[str, ...] = ()
    """Second tables of vectors that studies may use, by name; ``"*"`` for any."""
    min_participants: int = Field(10, ge=1)
    """Fewest participants of the site that must take part in an answer."""
    min_group: int = Field(5, ge=1)
    """Fewest participants in each part that an answer can be taken apart into: those held out of training, a fold, a
    level of a category, each column of the covariates."""
    secure_sum_required: bool = True
    """Let sums and model updates leave only inside a secure sum."""

    def permit(self, study: str, analyses: Iterable[str] = (), recipe: str | None = None) -> None:
        """Refuse what is not allowed, before anything is computed.

        Raises
        ------
        Refusal
            Naming the rule.
        """
        if not _allows(self.studies, study):
            raise Refusal(RefusalCode.STUDY, f"study '{study}' is not in policy.studies of site.yaml.")
        for analysis in analyses:
            if not _allows(self.analyses, analysis) or (analysis in SHOWS_ONE_SITE and analysis not in self.analyses):
                raise Refusal(RefusalCode.ANALYSIS, f"'{analysis}' is not in policy.analyses of site.yaml.")
        if recipe is not None and not _allows(self.recipes, recipe):
            raise Refusal(RefusalCode.RECIPE, f"recipe '{recipe}' is not in policy.recipes of site.yaml.")

    def permit_vectors(self, name: str) -> None:
        """Refuse a second table that is not named.

        Raises
        ------
        Refusal
            Naming the rule.
        """
        if not _allows(self.vectors, name):
            raise Refusal(RefusalCode.ANALYSIS, f"vectors '{name}' are not in policy.vectors of site.yaml.")

    def permit_group(self, n_participants: int, what: str) -> None:
        """Refuse an answer with a part that too few stand behind.

        Raises
        ------
        Refusal
            Naming the part.
        """
        if n_participants < self.min_group:
            raise Refusal(
                RefusalCode.GROUP,
                f"{n_participants} participants stand behind {what}; policy.min_group is {self.min_group}.",
            )

    def permit_release(self, n_participants: int, *, carries_sums: bool, in_secure_sum: bool) -> None:
        """Refuse to let out what too few stand behind, or a plain sum where only secure ones may leave.

        Raises
        ------
        Refusal
            Naming the rule.
        """
        if n_participants < self.min_participants:
            raise Refusal(
                RefusalCode.PARTICIPANTS,
                f"{n_participants} participants stand behind the answer; policy.min_participants is "
                f"{self.min_participants}.",
            )
        if carries_sums and self.secure_sum_required and not in_secure_sum:
            raise Refusal(
                RefusalCode.PLAIN,
                "policy.secure_sum_required is true, and this answer would leave as a plain sum. Set it to false only "
                "for simulated or public data, or where every site trusts the coordinator with its sums.",
            )


def _allows(allowed: tuple[str, ...], name: str) -> bool:
    return EVERYTHING in allowed or name in allowed
