"""Which classes to keep, and why the others not: by a few limits, or as a person did in other runs."""

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
from sklearn.preprocessing import StandardScaler

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem._core.validation import ParticleDataError, check_number

FIFTHS = 5
GOOD_QUANTILE = 0.8  # of the particles by the information of their class: one of the better classes
# The edge of a carbon film crosses the mask as a step: of two such classes in a simulated session 33 and 34 %
# of the power lies along one direction, and the contrast is 3.8 and 4.2 times that share. Views of particles
# (70S, beta-galactosidase, shells, rods) with 30 % and more have a contrast of at least 5.5 times.
EDGE_LINES, EDGE_CONTRAST = 0.3, 5.0
# Classes of empty fields and clumps in four simulated sessions are matched by 2.1 to 3.4 in the median, where
# nothing else speaks against them; blurred ones of particles by 4.5 and more.
MIN_MATCH, MATCH_SHARE = 3.5, 0.8  # at most this share of the usual match: noise may be strong

# What a person sees of an average and reads beside it; sizes are those of one run.
LEARNED_COLUMNS = (
    "resolution", "snr", "information", "significance", "coherence", "strength", "background", "contrast",
    "edge", "offset", "extent", "spikes", "lines", "posterior", "stability",
)  # fmt: skip
_VERSION = 1  # of the file of a learned selection

# what is said of a class that breaks the limit on a measure, in the order of the table of reasons
REASONS = {
    "size": "too few to judge",
    "significance": "no more signal than aligned noise: {significance:.2g} times as much",
    "match": "its particles match it by {match:.2g} in the median, as aligned noise does",
    "coherence": "particles unlike each other: {coherence:.0%} of their power is in the average",
    "background": "{background:.0%} of its images have ice, carbon or others in their background",
    "edge": "signal at the mask's edge, {edge:.2g} times that within",
    "offset": "off centre by {offset:.2g} of the mask's radius",
    "extent": "{extent:.2g} times as large as others: a lump of ice, or dirt",
    "spikes": "much of its power in a single point ({spikes:.2g}): hot pixels",
    "lines": "{lines:.0%} of its power along one direction: stripes or bad rows",
    "step": "{lines:.0%} of its power along one direction and little contrast: an edge of carbon",
    "strength": "{strength:.2g} times as strong at low resolution as others",
    "contrast": "darker than what is around it",
}


def suggest_classes(
    table: pd.DataFrame,
    *,
    min_size: int = 10,
    min_significance: float = 1.0,
    min_coherence: float = 0.65,
    max_background: float = 0.2,
    max_edge: float = 0.35,
    max_offset: float = 0.15,
    min_extent: float = 0.4,
    max_strength: float = 2.0,
    max_spikes: float = 2.5,
    max_lines: float = 0.5,
    min_contrast: float = 0.0,
) -> pd.DataFrame:
    """Rank classes and suggest which to keep, by limits on their measures.

    Parameters
    ----------
    table : DataFrame
        From `class_quality`; its suggestion is made anew.
    min_size : int, default=10
        Particles that a class needs to be judged at all.
    min_significance : float, default=1.0
        Least energy of the signal, over that of noise that was aligned to itself: a class is judged by its
        own signal, so that a rare view need not be as sharp as a common one.
    min_coherence : float, default=0.65
        Least share of the power above the usual noise that the average explains, in classes of more than the
        usual power: clumps and blobs of all shapes have it. In classes of less the particles are faint.
    max_background : float, default=0.2
        Largest share of images that have more than noise in their background.
    max_edge : float, default=0.35
        Most signal at the rim of the mask, over that of the strongest ring within.
    max_offset : float, default=0.15
        Farthest centre of the particle, over the radius of the mask.
    min_extent : float, default=0.4
        Smallest area, over the median of particles: lumps of ice are smaller, and the end of a rod is seen
        with half of the area of its side.
    max_strength : float, default=2.0
        Largest power at low resolution, over the median of particles.
    max_spikes : float, default=2.5
        Most power in a single point, as hot pixels have it.
    max_lines : float, default=0.5
        Most power in one line of the Fourier plane, as stripes and bad rows of a detector have it.
    min_contrast : float, default=0.0
        Least contrast of the particle over the rim: above 0 for white ones.

    Returns
    -------
    DataFrame
        The table with ``score`` (information over that of a good class, times how far each limit is broken;
        0 to 1), ``rank`` (from 1: kept classes first, then by score), ``keep`` (bool) and ``reasons`` (text,
        empty for kept classes).

    Notes
    -----
    The limit on significance holds for each class by itself, whatever the others are; those on strength,
    extent and coherence and the score compare the classes of one run. A class whose power lies along one
    direction while it has little contrast over the rim is rejected as the edge of a carbon film, and one
    whose particles match it as aligned noise does, where their ``match`` is known. Nothing here replaces
    a look at the class averages.
    """
    least = {"size": min_size, "significance": min_significance, "coherence": min_coherence,
             "extent": min_extent}  # fmt: skip
    most = {"background": max_background, "edge": max_edge, "offset": max_offset, "spikes": max_spikes,
            "lines": max_lines, "strength": max_strength}  # fmt: skip
    check_number("min_size", min_size, owner="suggest_classes", minimum=2, integer=True)
    for name in ("significance", "coherence", "extent"):
        highest = 1 if name == "coherence" else None
        check_number(f"min_{name}", least[name], owner="suggest_classes", minimum=0, maximum=highest)
    for name, limit in most.items():
        check_number(f"max_{name}", limit, owner="suggest_classes", minimum=0, inclusive=False)
    # how far each measure is from its limit: at least 1 passes
    margins = {name: _over(table[name].to_numpy(), limit) for name, limit in least.items()}
    margins |= {name: limit / _positive(table[name]) for name, limit in most.items()}
    margins["coherence"] = np.maximum(margins["coherence"], 1.0 / _positive(table["strength"]))
    match, sizes = table.get("match", pd.Series(np.nan, table.index)).to_numpy(), table["size"].to_numpy()
    known = np.repeat(match, sizes)[np.isfinite(np.repeat(match, sizes))]
    usual = float(np.median(known)) if len(known) else np.nan
    margins["match"] = np.nan_to_num(_over(match, min(MIN_MATCH, MATCH_SHARE * usual)), nan=np.inf)
    lines, contrast = _positive(table["lines"]), table["contrast"].to_numpy()
    margins["step"] = np.maximum(EDGE_LINES / lines, contrast / (EDGE_CONTRAST * lines))
    margins["contrast"] = np.where(contrast > min_contrast, np.inf, 0.0)
    names = sorted(margins, key=[*REASONS].index)  # raises where a limit has no reason
    margin = np.stack([margins[name] for name in names])  # (n_measures, n_classes)
    # Of these measures one is NaN only where a class shows nothing, which speaks against it. A measure that a
    # whole run may lack, such as `stability`, needs another rule before it can have a limit.
    margin = np.nan_to_num(margin, nan=0.0, posinf=np.inf)
    keep = (margin >= 1.0).all(axis=0)
    share = table["information"].to_numpy() / _good_information(table)  # (n_classes,)
    score = np.clip(np.nan_to_num(share), 0.0, 1.0) * np.clip(margin, 0.0, 1.0).prod(axis=0)
    order = np.lexsort((-table["size"].to_numpy(), -score, ~keep))
    judged = table.assign(score=score, rank=np.argsort(order) + 1, keep=keep)
    judged["reasons"] = [
        _reasons(row, [name for name, value in zip(names, some, strict=True) if value < 1.0])
        for row, some in zip(table.to_dict("records"), margin.T, strict=True)
    ]
    return judged


def _reasons(row: dict[str, Any], failed: list[str]) -> str:
    """Everything that speaks against a class; of one that cannot be judged, only that."""
    if "size" in failed:
        size = int(row["size"])
        return "empty" if size == 0 else f"{size} particle{'s' * (size > 1)}, {REASONS['size']}"
    reasons = {name: REASONS[name].format(**row) for name in failed}
    if "strength" in failed and not {"spikes", "lines"} & reasons.keys():  # these are strong as well
        reasons["strength"] += ": ice or carbon"
    return "; ".join(reasons.values())


def _good_information(table: pd.DataFrame) -> float:
    """Information of one of the better classes: that of the particle at the 80th percentile."""
    values, sizes = table["information"].to_numpy(dtype=np.float64), table["size"].to_numpy()
    known = np.isfinite(values) & (sizes > 0)
    if not known.any():
        return 1.0
    good = float(np.quantile(np.repeat(values[known], sizes[known]), GOOD_QUANTILE))
    return good if good > 0 else 1.0


def _over(value: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    return value / limit if limit > 0 else np.full(len(value), np.inf)


def _positive(column: pd.Series) -> NDArray[np.float64]:
    """The column, but at least a trace, to divide by; NaN stays."""
    values = column.to_numpy(dtype=np.float64)
    return np.where(values <= 0, 1e-12, values)


def kept_by_rarity(table: pd.DataFrame) -> list[float]:
    """Share of the particles that are kept in each fifth of them, from the smallest classes to the largest.

    A rare view has a small class. Nothing but sizes and the suggestion goes in, so the figure cannot hide a
    view by calling it junk; where the junk is in small classes as well, it counts there.

    Parameters
    ----------
    table : DataFrame
        From `suggest_classes`.

    Returns
    -------
    list of float
        Of length 5; empty without particles.
    """
    order = table.sort_values("size", kind="stable")
    kept = np.repeat(order["keep"].to_numpy(dtype=np.float64), order["size"])  # (n_images,), rarest first
    return [float(part.mean()) for part in np.array_split(kept, FIFTHS)] if len(kept) >= FIFTHS else []


# ---------------------------------------------------------------- what a person would keep
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
    columns = [name for name in LEARNED_COLUMNS if name in table and table[name].notna().any()]
    values = _measures(table, columns)
    usual = StandardScaler().fit(values)
    scaled = np.nan_to_num(usual.transform(values))
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    folds: Any = StratifiedKFold(5) if len(rows) == 1 else LeaveOneGroupOut()
    told = cross_val_predict(regression, scaled, target, groups=None if len(rows) == 1 else group, cv=folds)
    regression.fit(scaled, target)
    return LearnedSelection(
        columns, usual.mean_.tolist(), usual.scale_.tolist(), regression.coef_[0].tolist(),
        float(regression.intercept_[0]), len(target), int(target.sum()), len(rows),
        float((told == target).mean()),
    )  # fmt: skip


def _measures(table: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Logarithms of measures, signs kept, so that a single large one does not rule; (n_classes, n)."""
    values = table.reindex(columns=list(columns)).to_numpy(dtype=np.float64)
    values = np.where(np.isinf(values), np.nan, values)
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
