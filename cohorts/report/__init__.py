"""The quality report of a cohort: one HTML file, and its tables beside it, which stay at the site."""

from cohorts.report.build import write_quality_report

__all__ = ["write_quality_report"]
