"""From fitted estimators to the facts of a run."""

import hashlib
from dataclasses import replace

import numpy as np
from sklearn.pipeline import Pipeline

from sklearn_cryoem.report.run import Run, Trace

_MACHINE = ("n_jobs", "verbose")  # parameters that change no result
_LENGTHS = ("initial_resolution", "mask_diameter", "max_resolution", "max_shift", "shift_step")
_RADIANS = ("angle_range", "angle_step")
_GRIDS = ("classes", "grid_shape", "n_basis", "n_clusters")
_ANGSTROM, _PIXELS = ("pixel_size",), ("downsample", "box")


def run_of_estimators(model, stack=None, *, latent_positions=None, quality=None, name=None):
    """Facts of fitted estimators.

    Parameters
    ----------
    model : estimator or Pipeline
        Fitted; the last one has the classes.
    stack : ParticleStack or None
        What it was fitted on.
    latent_positions : ndarray or None
        Of the particles.
    quality : DataFrame or None
        One row for each class.
    name : str or None
        Title of the page.

    Returns
    -------
    Run
    """
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    last = steps[-1]
    if not hasattr(last, "class_averages_"):
        raise TypeError(
            f"a report cannot be made of {type(last).__name__}: it has no class_averages_. Give a fitted "
            f"MAPAligner, SMLClusterer or DeepClusterer, a Pipeline that ends in one, or the folder of a run."
        )
    n_classes = len(last.class_averages_)
    labels = np.asarray(last.labels_)
    if stack is not None and len(stack) != len(labels):
        raise ValueError(
            f"the stack has {len(stack)} particles, expected {len(labels)}, those of the fit. "
            f"Pass the stack that the estimator was fitted on."
        )
    return Run(
        name=name or type(last).__name__,
        source=source_of(last, labels),
        averages=last.class_averages_,
        sizes=np.bincount(labels, minlength=n_classes),
        resolution=last.class_resolution_,
        pixel_size=getattr(stack, "pixel_size", None),
        nodes=getattr(last, "latent_nodes_", None),
        topology=getattr(last, "topology", "grid"),
        positions=latent_positions,
        labels=labels,
        stack=posed(stack, steps),
        quality=quality,
        tree=getattr(last, "tree_", None),
        first_averages=first_averages_of(last),
        traces=[trace for step in steps for trace in traces_of(step)],
        facts=[parameters_of(step, getattr(stack, "pixel_size", None)) for step in described(steps)],
    )


def source_of(model, labels):
    """What a selection says it was made from: another fit gives other labels, hence another fingerprint."""
    fingerprint = hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:12]
    return {"estimator": type(model).__name__, "n_classes": len(model.class_averages_), "labels": fingerprint}


def posed(stack, steps):
    """The stack with the poses that an aligner among `steps` found for it, if there is one."""
    poses = next((step.poses_ for step in steps if getattr(step, "poses_", None) is not None), None)
    if stack is None or poses is None or len(poses) != len(stack):
        return stack
    return stack.with_poses(poses)


def first_averages_of(model):
    """Averages of the classes that a deep clustering divided, or None."""
    first = getattr(model, "first_", None)
    first = first.steps[-1][1] if isinstance(first, Pipeline) else first
    return getattr(first, "class_averages_", None)


def traces_of(step):
    """How a fit went, as Traces: of a deep clustering its first classification and the largest class."""
    if isinstance(step, Pipeline):
        return [trace for _, inner in step.steps for trace in traces_of(inner)]
    if hasattr(step, "first_"):
        return [*traces_of(step.first_), *_trace_of_largest(step)]
    if hasattr(step, "pass_resolution_"):
        reached = np.asarray(step.pass_resolution_, dtype=float)
        return [
            Trace(
                "Alignment: passes over all particles",
                step.log_posterior_,
                "log evidence",
                reached,
                "best reference",
                [0.0, *reached[:-1]],  # what a pass reaches is what the next one uses
            )
        ]
    if hasattr(step, "stage_"):
        return [
            Trace(
                "Clustering", step.log_posterior_, "objective", step.resolution_, "resolution limit",
                step.stage_, getattr(step, "held_out_", None), getattr(step, "temperature_", None),
            )
        ]  # fmt: skip
    return []


def _trace_of_largest(deep):
    """How the largest class of a deep clustering was divided."""
    sizes = np.bincount(deep.first_labels_, minlength=len(deep.clusterers_))
    divided = [k for k, clusterer in enumerate(deep.clusterers_) if clusterer is not None]
    if not divided:
        return []
    largest = max(divided, key=lambda k: sizes[k])
    fitted = deep.clusterers_[largest]
    (trace,) = traces_of(fitted[-1] if isinstance(fitted, Pipeline) else fitted)
    return [replace(trace, title=f"Clustering inside class {largest + 1}, the largest")]


def described(steps):
    """The steps and those inside them, as far as their parameters are worth a table of their own."""
    first = getattr(steps[-1], "first_", None)
    inner = [step for _, step in first.steps] if isinstance(first, Pipeline) else [first]
    return steps if first is None else [*steps, *inner]


def parameters_of(step, pixel_size):
    """(heading, [(parameter, value), ...]) as text with units, without what changes no result."""
    unit = "px" if pixel_size is None else "Å"
    parameters = step.get_params(deep=False)
    shown = [
        (name, with_unit(name, as_text(value), unit))
        for name, value in sorted(parameters.items())
        if name not in _MACHINE
    ]
    return (f"Parameters of {type(step).__name__}", shown)


def with_unit(name, text, unit):
    """The text of a parameter's value with its unit, if it is a number that has one."""
    units = {**dict.fromkeys(_LENGTHS, unit), **dict.fromkeys(_RADIANS, "rad")}
    units |= {**dict.fromkeys(_ANGSTROM, "Å"), **dict.fromkeys(_PIXELS, "px")}
    text = text.replace(", ", " × ") if name in _GRIDS else text
    return f"{text} {units[name]}" if name in units and text[:1].isdigit() else text


def as_text(value):
    """A parameter or a result as text for people."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    if hasattr(value, "get_params"):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(item) for item in value) or "none"
    return str(value)
