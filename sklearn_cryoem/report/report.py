"""The report of a run: made from estimators or from the folder of a run, saved or shown in a notebook."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from pandas import DataFrame
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem._version import __version__
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_order
from sklearn_cryoem.plotting._figure import ACCENT, FAINT, INK, new_figure
from sklearn_cryoem.plotting.convergence import ROW_INCH, SECOND_COLOUR, WIDTH_INCH, draw_fit
from sklearn_cryoem.report.folder import run_of_folder
from sklearn_cryoem.report.page_data import page_data
from sklearn_cryoem.report.run import Run, run_of_estimators

try:
    import jinja2
    from markupsafe import Markup
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "jinja2 is not installed, and the report needs it. "
        "Install it with: pip install 'sklearn-cryoem[report]'",
        name=error.name,
    ) from error

STYLES = ("style.css", "views.css")
SCRIPTS = (
    "classes.js", "selection.js", "tiles.js", "details.js", "gallery.js", "box_selection.js", "tree.js",
    "map_view.js", "atlas.js", "atlas_input.js", "rules.js", "files.js", "main.js",
)  # fmt: skip
_HEIGHT_PX = 820  # of the page inside a notebook
# Colours of a picture become those of the page, which has a light and a dark theme.
_PAGE_COLOURS = {
    INK: "--ink", FAINT: "--faint", ACCENT: "--chosen", SECOND_COLOUR: "--focus", "#000000": "--faint",
}  # fmt: skip


def report(
    classification: BaseEstimator | str | os.PathLike[str],
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
    classification : estimator, Pipeline or path-like
        A fitted `MAPAligner`, `SMLClusterer`, `DeepClusterer` or `RealigningClusterer`, or a Pipeline that
        ends in one; or the folder that `sklearn-cryoem classify` wrote.
    stack : ParticleStack, default=None
        What the estimator was fitted on: for example particles and for lengths in Angstrom. A folder names
        its own.
    latent_positions : array-like of shape (n_particles, n_components), default=None
        `estimator.transform(stack)`: their density is drawn in the atlas. By default that of the class sizes.
        A folder's are computed from its model.
    quality : DataFrame or mapping of arrays, default=None
        One row for each class: `rank` (1 is best), `keep` (whether to keep the class), `reasons` (text),
        `resolution` and any number of measures, as `class_quality` gives. By default classes of an estimator
        are ranked by size, and have no resolutions.
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
        If `classification` has no classes, or classification and particles are swapped.

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
    check_order("report", classification, stack)
    if isinstance(classification, str | os.PathLike):
        run = run_of_folder(Path(classification), images_dir=images_dir, examples=examples, quality=quality)
    else:
        run = run_of_estimators(classification, stack, latent_positions=latent_positions, quality=quality)
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


def render(run: Run, *, examples: bool = True) -> str:
    """Make the page: a template, style sheets and scripts in one HTML file that needs no other."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        name=run.name,
        facts_line=_facts_line(run),
        data=page_data(run, examples=examples),
        charts=[chart(fit) for fit in run.fits],
        facts=run.facts,
        warnings=[*run.warnings, *run.missing],
        styles=[Markup(_resource(name)) for name in STYLES],
        scripts=[Markup(_resource(name)) for name in SCRIPTS],
        version=__version__,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def chart(fit):
    """The picture of one fit for the template, as an SVG in the colours of the page, and its values."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": fit.title}
    with matplotlib.rc_context(settings), io.StringIO() as file:
        figure = new_figure(WIDTH_INCH, ROW_INCH * len(fit.panels) + 0.4)
        draw_fit(figure, fit)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    values = np.column_stack([measure.values for measure in fit.measures])  # (n_steps, n_measures)
    return {
        "title": fit.title,
        "outcome": fit.outcome,
        "svg": Markup(svg),
        "headings": ["step", "phase", *(measure.label.replace("\n", " ") for measure in fit.measures)],
        "rows": [
            [f"{step}", fit.names[phase], *(f"{value:,.5g}" for value in row)]
            for step, (phase, row) in enumerate(zip(fit.phase, values, strict=True), start=1)
        ],
    }


def _facts_line(run):
    """The few numbers that everybody wants first, as (value, what) pairs."""
    n_filled = np.count_nonzero(run.sizes)
    line = [
        (f"{int(run.sizes.sum()):,}", "particles"),
        (f"{n_filled:,}", "classes" if n_filled == run.n_classes else f"of {run.n_classes:,} classes filled"),
        (f"{effective_count(run.sizes):.0f}", "effective classes by size"),
        (f"{run.averages.shape[-1]} px", "box"),
    ]
    if run.pixel_size is not None:
        line.append((f"{run.pixel_size:.4g} Å", "pixel"))
    if run.finest_resolution is not None:
        line.append((f"{run.finest_resolution:.3g} {run.unit}", "best class (optimistic)"))
    return line


def _resource(name):
    """Text of a file of the page."""
    return (files("sklearn_cryoem.report") / "page" / name).read_text(encoding="utf-8")
