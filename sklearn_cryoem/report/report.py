"""The report of a run: made from estimators or from the folder of a run, saved or shown in a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import ArrayLike
from pandas import DataFrame
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.report.collect import run_of_estimators
from sklearn_cryoem.report.folder import run_of_folder
from sklearn_cryoem.report.render import render
from sklearn_cryoem.report.run import Run

_HEIGHT_PX = 820  # of the page inside a notebook


def report(
    model: BaseEstimator | str | os.PathLike[str],
    stack: ParticleStack | None = None,
    *,
    latent_positions: ArrayLike | None = None,
    quality: Mapping[str, ArrayLike] | DataFrame | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    examples: bool = True,
    title: str | None = None,
) -> Report:
    """Make an HTML page of a classification: gallery, atlas, convergence, tree, parameters, warnings.

    The page is one file that needs no network. Classes can be selected in it by click, box, rank or keyboard;
    the selection is saved as JSON, which `sklearn-cryoem select` turns into a subset of the particles.

    Parameters
    ----------
    model : estimator, Pipeline or path-like
        A fitted `MAPAligner`, `SMLClusterer`, `DeepClusterer` or a Pipeline that ends in one; or the folder
        that `sklearn-cryoem classify` wrote.
    stack : ParticleStack, default=None
        What the estimator was fitted on: for example particles and for lengths in Angstrom. A folder names
        its own.
    latent_positions : array-like of shape (n_particles, n_components), default=None
        `estimator.transform(stack)`: their density is drawn in the atlas. By default that of the class sizes.
        A folder's are computed from its model.
    quality : DataFrame or mapping of arrays, default=None
        One row for each class: `rank` (1 is best), `keep` (whether to keep the class), `reasons` (text) and
        any number of measures. By default classes are ranked by size.
    images_dir : path-like, default=None
        For a folder: where the image stacks are, if they were moved.
    examples : bool, default=True
        Whether to show example particles; a few of each class are read.
    title : str, default=None
        Title of the page; by default the name of the folder or of the estimator.

    Returns
    -------
    Report
        Shows itself in a notebook; `save` writes it.

    Raises
    ------
    ParticleDataError
        If the parts do not fit each other, or the folder holds no finished run.
    TypeError
        If `model` has no classes.

    Examples
    --------
    >>> from sklearn_cryoem import SMLClusterer
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> from sklearn_cryoem.report import report
    >>> stack = aligned_to_truth(make_particles("ribosome", 100, box=24, snr=1.0, random_state=0))
    >>> page = report(SMLClusterer((2, 2)).fit(stack), stack)
    >>> page
    Report(SMLClusterer: 100 particles in 4 classes, 0.1 MB)
    """
    if isinstance(model, str | os.PathLike):
        run = run_of_folder(Path(model), images_dir=images_dir, examples=examples, quality=quality)
    else:
        run = run_of_estimators(model, stack, latent_positions=latent_positions, quality=quality)
    run.name = title or run.name
    return Report(run, examples=examples)


class Report:
    """A report as one HTML page.

    Parameters
    ----------
    run : Run
        What it is about.
    examples : bool
        Whether to show example particles.

    Attributes
    ----------
    html : str
        The page.
    warnings : list of str
        What it could not show, and why.
    """

    def __init__(self, run: Run, *, examples: bool = True) -> None:
        self._label = f"{run.name}: {int(run.sizes.sum()):,} particles in {run.n_classes:,} classes"
        self.html = render(run, examples=examples)
        self.warnings = list(run.missing)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the page, whole or not at all.

        Parameters
        ----------
        path : path-like
            File to write; by custom it ends in .html.
        overwrite : bool, default=False
            Whether an existing file may be replaced.
        """
        with atomic_path(path, overwrite=overwrite) as temporary:
            # A name of a file may have bytes that are not UTF-8.
            temporary.write_text(self.html, encoding="utf-8", errors="replace")

    def __repr__(self):
        return f"Report({self._label}, {len(self.html) / 1e6:.1f} MB)"

    def _repr_html_(self):
        # A frame of its own: the page's style and keys then leave the notebook alone, and its the page.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="{html.escape(self._label)}" '
            f'style="width:100%;height:{_HEIGHT_PX}px;border:1px solid #8884;border-radius:8px"></iframe>'
        )
