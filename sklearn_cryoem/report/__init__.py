"""One self-contained HTML page of a classification, to look through, to select from, to hand on."""

from sklearn_cryoem.report.report import Report, report

__all__ = ["Report", "report"]
