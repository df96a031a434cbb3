"""Selections of classes that somebody made, learned from the table of quality and applied to other runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem._core.validation import ParticleDataError

# What a person sees of an average and reads beside it; sizes are those of one run.
COLUMNS = (
    "resolution", "snr", "information", "significance", "coherence", "strength", "background", "contrast",
    "edge", "offset", "extent", "spikes", "lines", "posterior", "stability",
)  # fmt: skip
_VERSION = 1


@dataclass(frozen=True)
class LearnedSelection:
    """A logistic regression over measures of classes, as numbers that a file holds.

    Attributes
    ----------
    columns : list of str
        Of the table of `class_quality`.
    middle, scale, weight : list of float
        Of each: what is subtracted from its logarithm, what that is divided by, and how it counts.
    offset : float
        Log odds of a class with the usual measures.
    n_classes, n_chosen, n_runs : int
        What it was learned from.
    accuracy : float
        Share of classes of runs (of classes, if there was one run) it had not seen, told as the person did.
    """

    columns: list[str]
    middle: list[float]
    scale: list[float]
    weight: list[float]
    offset: float
    n_classes: int
    n_chosen: int
    n_runs: int
    accuracy: float

    def probability(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Probability that the person would keep each class of a table of `class_quality`; 0 if empty."""
        values = (_measures(table, self.columns) - self.middle) / self.scale
        odds = np.nan_to_num(values) @ np.array(self.weight) + self.offset
        return np.where(table["size"].to_numpy() > 0, 1.0 / (1.0 + np.exp(-odds)), 0.0)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it as JSON."""
        with atomic_path(path, overwrite=overwrite) as temporary:
            text = json.dumps({"learned_selection": _VERSION, **asdict(self)}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LearnedSelection:
        """Read what `save` wrote; ParticleDataError if it is something else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("learned_selection") != _VERSION:
                raise ValueError("of another version")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ParticleDataError(
                f"{path}: no learned selection ({error}). Make it with sklearn-cryoem learn-selection."
            ) from error


def learn_selection(tables: Sequence[pd.DataFrame], chosen: Sequence[ArrayLike]) -> LearnedSelection:
    """Learn which classes somebody keeps, from selections that were made.

    Parameters
    ----------
    tables : sequence of DataFrame
        Of `class_quality`, one for each run. Empty classes do not count.
    chosen : sequence of array_like of int
        Class numbers from 1 that were selected in each.

    Returns
    -------
    LearnedSelection
        A logistic regression on logarithms of the measures, both outcomes weighing the same, with the
        accuracy that it had on runs it had not seen (on fifths of the classes where there is one run).

    Raises
    ------
    ValueError
        If there are fewer than five classes that were selected, or that were not, or if all that were, or
        that were not, are of one of several runs.
    """
    rows = [table[table["size"] > 0] for table in tables]
    kept = [table["class"].isin(list(some)).to_numpy() for table, some in zip(rows, chosen, strict=True)]
    table, target = pd.concat(rows, ignore_index=True), np.concatenate(kept)
    group = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    if min(target.sum(), (~target).sum()) < 5:
        raise ValueError(
            f"{target.sum()} classes are selected and {(~target).sum()} are not, expected five of each at "
            "least. Give selections of more runs."
        )
    for number in range(len(rows) if len(rows) > 1 else 0):  # what is learned is tried on each run in turn
        others = target[group != number]
        if others.all() or not others.any():
            raise ValueError(
                f"without run {number + 1}, {'all' if others.all() else 'none'} of the {len(others)} classes "
                "are selected, expected some of them. Give selections of more runs, or leave out runs that "
                "were kept or rejected whole."
            )
    columns = [name for name in COLUMNS if name in table and table[name].notna().any()]
    values = _measures(table, columns)
    middle, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    scaled = np.nan_to_num((values - middle) / scale)
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    folds: Any = StratifiedKFold(5) if len(rows) == 1 else LeaveOneGroupOut()
    told = cross_val_predict(regression, scaled, target, groups=None if len(rows) == 1 else group, cv=folds)
    regression.fit(scaled, target)
    return LearnedSelection(
        columns, middle.tolist(), scale.tolist(), regression.coef_[0].tolist(),
        float(regression.intercept_[0]), len(target), int(target.sum()), len(rows),
        float((told == target).mean()),
    )  # fmt: skip


def _measures(table: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Logarithms of measures, signs kept, so that a single large one does not rule; (n_classes, n)."""
    values = table.reindex(columns=list(columns)).to_numpy(dtype=np.float64)
    values = np.where(np.isinf(values), np.nan, values)
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
