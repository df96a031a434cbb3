"""How many classes and dimensions: what particles tell that a model has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import KFold

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer
from sklearn_cryoem.particles import ParticleStack


def choose_classes(
    clusterer: SMLClusterer,
    stack: ParticleStack,
    classes: Sequence[int],
    dimensions: Sequence[int] = (1, 2),
    *,
    n_folds: int = 3,
) -> pd.DataFrame:
    """Compare numbers of classes and latent dimensions by the likelihood of held-out particles, Eq. (3.9).

    Parameters
    ----------
    clusterer : SMLClusterer
        With all other parameters; it is copied for each fit.
    stack : ParticleStack
        Aligned particles. Outliers do not count.
    classes : sequence of int
        Numbers of classes to try.
    dimensions : sequence of int, default=(1, 2)
        Dimensions of the manifold to try.
    n_folds : int, default=3
        Each candidate is fitted to all but one part of the particles and asked about that part, in turn.

    Returns
    -------
    DataFrame
        One row for each candidate: ``classes`` (as the grid rounds them), ``dimensions``, ``score`` (nats per
        particle), ``below_best`` (mean difference from the best candidate, particle by particle),
        ``error`` (standard error of that difference), ``effective_classes`` (mean over folds), and
        ``recommended``: the fewest classes whose difference is no more than its standard error.

    Raises
    ------
    ValueError
        If there is no candidate, or a parameter is out of range.

    Notes
    -----
    As many fits as candidates times folds. Alignment has seen all particles, which favours no candidate.
    """
    check_number("n_folds", n_folds, owner="choose_classes", minimum=2, integer=True)
    sound = stack if stack.outlier is None else stack[~stack.outlier]
    rows, scores = [], []
    folds = list(KFold(n_folds).split(np.arange(len(sound))))
    for n_components in dimensions:
        for n_clusters in classes:
            score, effective = np.empty(len(sound)), []
            model: Any = clone(clusterer).set_params(n_clusters=n_clusters, n_components=n_components)
            for seen, held_out in folds:
                fitted = clone(model).fit(sound[seen])
                score[held_out] = fitted.score_samples(sound[held_out])
                effective.append(fitted.n_effective_clusters_)
            found = len(fitted.class_averages_)
            rows.append((found, n_components, score.mean(), np.mean(effective)))
            scores.append(score)
    if not rows:
        raise ValueError("choose_classes got no candidate. Give numbers of classes and dimensions.")
    table = pd.DataFrame(rows, columns=["classes", "dimensions", "score", "effective_classes"])
    less = scores[int(table["score"].argmax())] - np.array(scores)  # (n_candidates, n_images), paired
    table.insert(3, "below_best", less.mean(axis=1))
    table.insert(4, "error", less.std(axis=1, ddof=1) / np.sqrt(len(sound)))
    as_good = table[table["below_best"] <= table["error"]].sort_values(["classes", "dimensions"])
    table["recommended"] = table.index == as_good.index[0]
    return table
