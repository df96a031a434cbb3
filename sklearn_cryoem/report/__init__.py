"""One self-contained HTML page of a classification, to look through, to select from, to hand on."""

import sklearn_cryoem.plotting  # noqa: F401 (first: it imports matplotlib whatever the environment says)
from sklearn_cryoem.report.report import Report, report

__all__ = ["Report", "report"]
