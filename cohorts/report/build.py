"""From a cohort to its quality report."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cohorts.cohort import Cohort
from cohorts.notices import NOTICES
from cohorts.quality import QualityRules
from cohorts.report import figures
from cohorts.report.group import MEASURES, Group, read_group, with_lengths, worth_a_look
from cohorts.report.page import Cell, Rows, Shown, Table, embedded, fill_sections, write_page
from cohorts.report.style import STYLE
from cohorts.report.wording import MOST_LEVELS, column_summary, rules_sentence, seconds_of

_PACKAGE = "cohorts.report"
_RECORDING_DPI = 115
"""What a screen shows of a figure as wide as the page. More would double the file for nothing."""
_MOST_PARCELS = 10
"""Rows of the table of parcels that are often missing."""


def write_quality_report(
    cohort: Cohort, path: str | Path, *, rules: QualityRules | None = None, recordings: int = 12
) -> Path:
    """Write a cohort's quality report as one HTML file that needs nothing beside it, and its tables as CSV beside it.

    It shows single recordings and so stays at the site. Recordings are read one at a time; of a cohort of more than
    1000, a sample of the participants is, and the report says so.

    Parameters
    ----------
    cohort : Cohort
        Is only read.
    path : path
        The file to write, which is returned.
    rules : QualityRules, optional
        Whose thresholds are drawn; the published ones if not given. Their fd_threshold and dvars_threshold must be
        those that the cohort was measured with.
    recordings : int
        How many single recordings to show, those first that are worst by some measure.
    """
    report = _Report(cohort, rules or QualityRules.published(), recordings)
    with mpl.rc_context(STYLE):
        return report.write(Path(path))


class _Report:
    """What the page is made of."""

    def __init__(self, cohort: Cohort, rules: QualityRules, most: int) -> None:
        self.cohort, self.rules, self.most = cohort, rules, most
        self.table = with_lengths(cohort.recordings, cohort.atlas.n_parcels)

    @cached_property
    def group(self) -> Group:
        return read_group(self.table, self.cohort.read, self.cohort.atlas)

    @cached_property
    def beyond(self) -> pd.DataFrame:
        """Whether a recording (row) is beyond the threshold of a measure (column)."""
        ids = self.table["recording_id"]
        return pd.DataFrame(
            {measure.column: measure.is_beyond(self.table[measure.column], self.rules) for measure in MEASURES}
        ).set_index(ids)

    def write(self, path: Path) -> Path:
        """Draw everything into one page."""
        filled = fill_sections(_PACKAGE, self._figure, lambda name: getattr(self, f"_{name}_table")())
        return write_page(
            path,
            _PACKAGE,
            filled,
            cohort=self.cohort,
            atlas=self.cohort.atlas,
            t_rs=[f"{t_r:g}" for t_r in sorted(self.table["t_r"].unique())],
            content_id=self._content_id(),
            headlines=self._headlines(),
            sample=self._sample(),
            methods=self._methods(),
            recordings=[self._recording(*chosen) for chosen in worth_a_look(self.table, self.most).items()],
        )

    def _content_id(self) -> str:
        """Hash of the recordings, which tells whether another report is of the same ones."""
        digests = "".join(self.table.sort_values("recording_id")["digest"])
        return hashlib.sha256(digests.encode()).hexdigest()[:12]

    @property
    def people(self) -> pd.DataFrame:
        """What is known of the participants, but for what was measured of their recordings."""
        return self.cohort.covariates().drop(columns=["participant_id", "mean_fd", "tsnr"], errors="ignore")

    def _methods(self) -> str:
        """Say what a paper must state."""
        if self.table.empty:
            return ""
        described = [f"{name}: {column_summary(self.people[name])}" for name in ("age", "sex") if name in self.people]
        minutes = self.table["minutes"]
        n_excluded = len(self.cohort.quarantined)
        return " ".join(
            [
                f"{len(self.table):,} recordings of {self.table['participant_id'].nunique():,} participants "
                f"({'; '.join(described) or 'age and sex not known'}) were analysed as mean time series of the "
                f"{self.cohort.atlas.n_parcels} parcels of {self.cohort.atlas.name}, with repetition times of "
                f"{seconds_of(self.table['t_r'])} and {minutes.median():.1f} min left after censoring (median; "
                f"{minutes.min():.1f} to {minutes.max():.1f}); preprocessing: {self.cohort.preprocessing}.",
                rules_sentence(self.rules),
                f"{n_excluded:,} recordings were excluded. FedBrainLM {self.cohort.about.software['fedbrainlm']}.",
            ]
        )

    def _figure(self, name: str) -> Figure | None:
        """Draw a figure that ``spec.yaml`` names."""
        if self.table.empty:
            return None
        atlas, group = self.cohort.atlas, self.group
        match name:
            case "distributions":
                return figures.distributions(self.table, self.rules)
            case "coverage_map":
                return figures.coverage_map(atlas.coordinates, group.coverage)
            case "mean_connectivity":
                return figures.mean_connectivity(group.connectivity, group.distance, atlas.networks)
            case "qc_fc":
                return figures.qc_fc(group.qc_fc, group.distance, group.n_qc_fc)
        raise KeyError(name)

    def _headlines(self) -> list[tuple[str, str, str]]:
        minutes, codes = self.table["minutes"], self.cohort.quarantined["code"]
        lengths = dict.fromkeys(f"{end:.1f}" for end in (minutes.min(), minutes.max()) if len(minutes))
        return [
            (f"{self.table['participant_id'].nunique():,}", "participants", f"{len(self.table):,} recordings"),
            (f"{minutes.sum() / 60:,.1f} h", "of signal after censoring", f"{' to '.join(lengths) or 0} min each"),
            (f"{self.beyond.any(axis=1).sum():,}", "beyond a threshold", "of the recordings that were kept"),
            (f"{len(codes):,}", "quarantined", f"most often: {codes.mode()[0]}" if len(codes) else "none"),
        ]

    def _sample(self) -> str:
        if self.table.empty or self.group.n_recordings == len(self.table):
            return ""
        group = self.group
        return (
            f"Coverage, connectivity and QC-FC are of {group.n_recordings:,} of the {len(self.table):,} recordings: "
            f"those of {group.n_participants:,} participants drawn at random."
        )

    def _quarantine_table(self) -> Table:
        """Reasons with their counts, and one message of each, which says what to do."""
        reasons = self.cohort.quarantined.groupby("code")["message"].agg(["size", "first"])
        reasons = reasons.sort_values("size", ascending=False, kind="stable")
        rows: Rows = [[code, int(count), example] for code, count, example in reasons.itertuples()]
        return Table(["reason", "recordings", "for example, and what to do"], rows)

    def _people_table(self) -> Table:
        """What is to be known of the participants and their table."""
        return Table(["what is to be known"], [[remark] for remark in self.cohort.remarks])

    def _notices_table(self) -> Table:
        """What was noticed of recordings, with their counts."""
        rows: Rows = [
            [NOTICES.get(code, code), Shown(count, f"{count} of {len(self.table)}")]
            for code, count in self.cohort.notices.items()
        ]
        return Table(["notice", "recordings"], rows)

    def _demographics_table(self) -> Table:
        """What is known of the participants, column by column."""
        rows: Rows = []
        for name, values in self.people.items():
            known = values.dropna()
            row: list[Cell] = [str(name), len(known)]
            if len(known) and pd.api.types.is_numeric_dtype(known):
                spread = float(known.std()) if len(known) > 1 else None
                row += [float(known.mean()), spread, float(known.min()), float(known.max()), ""]
            else:
                levels = known.astype("str").nunique()
                row += ["", "", "", "", column_summary(known) if levels <= MOST_LEVELS else f"{levels} different ones"]
            rows.append(row)
        note = f"Of {len(self.people):,} participants. Studies learn of these columns what they ask for, as sums alone."
        return Table(["column", "known of", "mean", "SD", "from", "to", "levels"], rows, note)

    def _rules_table(self) -> Table:
        """Every threshold, by its name in a file of rules."""
        rules = self.rules.model_dump()
        rows: Rows = [[name, Shown(value, "none" if value is None else f"{value:g}")] for name, value in rules.items()]
        return Table(["setting", "threshold"], rows, "configs/quality.yaml says where the published ones come from.")

    def _measures_table(self) -> Table:
        """Median and spread of every measure beside its threshold."""
        rows: list[list[Cell]] = []
        for measure in MEASURES:
            values = self.table[measure.column].dropna()
            limit, sign = measure.limit(self.rules), "≤" if measure.worse == "high" else "≥"
            row: list[Cell] = [measure.title, measure.unit]
            row.append(measure.shown(values.median()))
            row += [measure.shown(values.quantile(q)) if len(values) else None for q in (0.05, 0.95)]
            row.append(Shown(limit, "none" if limit is None else f"{sign} {limit:g}"))
            row.append(int(self.beyond[measure.column].sum()) if limit is not None and len(values) else "")
            rows.append([*row, Shown(len(values), f"{len(values)} of {len(self.table)}")])
        note = (
            f"A frame of motion has a framewise displacement above {self.rules.fd_threshold:g} mm, a spike a "
            f"standardized DVARS above {self.rules.dvars_threshold:g}. Recordings in quarantine are not counted."
        )
        return Table(["measure", "unit", "median", "5%", "95%", "threshold", "beyond it", "known in"], rows, note)

    def _parcels_table(self) -> Table:
        """The parcels that are missing, those first that are missing most often."""
        if self.table.empty:
            return Table([], [])
        coverage = self.group.coverage
        lowest = [parcel for parcel in np.argsort(coverage, kind="stable") if coverage[parcel] < 1]
        columns: dict[str, Sequence[Cell] | None] = {
            "parcel": self.cohort.atlas.labels,
            "network": self.cohort.atlas.networks,
            "recordings with a signal": [Shown(float(fraction), f"{fraction:.1%}") for fraction in coverage],
        }
        known = {title: values for title, values in columns.items() if values}
        return Table(list(known), [[values[p] for values in known.values()] for p in lowest], most=_MOST_PARCELS)

    def _qc_fc_table(self) -> Table:
        """QC-FC in three numbers."""
        if self.table.empty or not np.isfinite(self.group.qc_fc).any():
            return Table([], [])
        found = figures.qc_fc_numbers(self.group.qc_fc, self.group.distance, self.group.n_qc_fc)
        rows: Rows = [
            ["median size of the correlation", found["median"]],
            [
                "pairs with p < 0.05, uncorrected (5% by chance)",
                Shown(found["significant"], f"{found['significant']:.1%}"),
            ],
            ["Spearman's ρ of the correlation with distance", found["distance"]],
        ]
        return Table([f"over {self.group.n_qc_fc} participants", ""], rows)

    def _recording(self, recording_id: str, reasons: list[str]) -> dict[str, Any]:
        """One recording: its names, why it is shown, its numbers and its figure."""
        row = self.table.set_index("recording_id").loc[recording_id]
        recording = self.cohort.read(recording_id)
        figure = figures.recording(recording, self.cohort.atlas.networks, self.rules)
        beyond = self.beyond.loc[recording_id]
        numbers = [
            (measure.title, measure.text(row[measure.column]), bool(beyond[measure.column])) for measure in MEASURES
        ]
        return {
            "name": recording_id,
            "reasons": "; ".join(reasons),
            "numbers": numbers,
            "figure": embedded(figure, _RECORDING_DPI),
        }
