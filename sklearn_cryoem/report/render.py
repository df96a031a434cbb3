"""The page itself: a template, one style sheet and a few scripts, put into one HTML file."""

from datetime import UTC, datetime
from importlib.resources import files

import numpy as np

from sklearn_cryoem._version import __version__
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.report.charts import chart
from sklearn_cryoem.report.data import page_data

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
    "classes.js", "selection.js", "tiles.js", "details.js", "gallery.js", "box.js", "tree.js", "map.js",
    "atlas.js", "hand.js", "rules.js", "files.js", "main.js",
)  # fmt: skip


def render(run, *, examples=True):
    """Make the page.

    Parameters
    ----------
    run : Run
        What it is about.
    examples : bool
        Whether to show example particles.

    Returns
    -------
    str
        HTML with everything inside it: no other file, no network.
    """
    data = page_data(run, examples=examples)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        name=run.name,
        facts_line=facts_line(run),
        data=data,
        charts=[chart(trace, run.unit) for trace in run.traces],
        facts=run.facts,
        warnings=[*run.warnings, *run.missing],
        styles=[Markup(_resource(name)) for name in STYLES],
        scripts=[Markup(_resource(name)) for name in SCRIPTS],
        version=__version__,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def facts_line(run):
    """The few numbers that everybody wants first, as (value, what) pairs."""
    filled = run.sizes[run.sizes > 0]
    line = [
        (f"{int(run.sizes.sum()):,}", "particles"),
        (
            f"{len(filled):,}",
            "classes" if len(filled) == run.n_classes else f"of {run.n_classes:,} classes filled",
        ),
        (f"{effective_count(filled):.0f}", "effective classes"),
        (f"{run.averages.shape[-1]} px", "box"),
    ]
    if run.pixel_size is not None:
        line.append((f"{run.pixel_size:.4g} Å", "pixel"))
    finite = run.resolution[np.isfinite(run.resolution) & (run.sizes > 0)]
    if finite.size:
        line.append((f"{finite.min():.3g} {run.unit}", "best class"))
    return line


def _resource(name):
    """Text of a file of the page."""
    return (files("sklearn_cryoem.report") / "page" / name).read_text(encoding="utf-8")
