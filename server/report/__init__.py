"""The HTML report of a run: one file, and its tables beside it, made from the run's folder alone."""

from server.report.build import write_report

__all__ = ["write_report"]
