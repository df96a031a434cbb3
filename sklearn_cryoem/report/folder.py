"""From the folder of a run to its facts: summary and averages are needed, model and particles may be gone."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ModelFileError, ParticleDataError, ParticleDataWarning
from sklearn_cryoem.estimators import load_model
from sklearn_cryoem.io import read_mrc, read_particles
from sklearn_cryoem.particles import class_labels
from sklearn_cryoem.report.collect import (
    as_text,
    described,
    first_averages_of,
    parameters_of,
    traces_of,
    with_unit,
)
from sklearn_cryoem.report.run import Run

SUMMARY, AVERAGES, MODEL = "summary.json", "class_averages.mrcs", "model.npz"
QUALITY, TREE = "quality.csv", "tree.json"
_LATENT = re.compile(r"^(?:sklearn_cryoem/)?smlLatent([1-9])$")  # as they are called in .star and .cs files
_RESULT_NAMES = {
    "n_particles": "particles", "n_left_out": "particles left out", "box_px": "box (px)",
    "pixel_size_angstrom": "pixel size (Å)", "n_classes": "classes", "grid_shape": "grid of classes",
    "n_classes_with_particles": "classes with particles", "n_classes_suggested": "classes suggested to keep",
    "n_particles_suggested": "particles in these", "n_effective_classes": "effective classes",
    "n_effective_classes_suggested": "effective classes suggested to keep",
    "kept_by_rarity": "kept of each fifth of the particles, smallest classes first",
    "agreement_of_repeat": "agreement with a second clustering (adjusted mutual information)",
    "defocus_share": "variance of the defocus between classes (share)",
    "defocus_share_by_chance": "that by chance",
    "n_first_classes": "first classes", "n_first_classes_divided": "first classes divided",
    "n_iter_cluster": "iterations of the clustering", "converged": "clustering converged",
    "log_posterior_per_particle": "log posterior (nats per particle)",
    "n_references_align": "references of the alignment", "n_classes_align": "classes of the alignment",
    "n_effective_classes_align": "effective classes of the alignment",
    "n_iter_align": "full passes of the alignment", "converged_align": "alignment converged",
}  # fmt: skip
_LENGTHS = {
    "finest_class_resolution": "finest class resolution", "alignment_resolution": "finest reference",
    "alignment_pass_resolution": "finest reference after each pass",
}  # fmt: skip


def run_of_folder(folder, *, images_dir=None, examples=True, quality=None):
    """Facts of a finished run.

    Parameters
    ----------
    folder : Path
        What `sklearn-cryoem classify -o` was given.
    images_dir : path-like or None
        Where the image stacks are, if they were moved.
    examples : bool
        Whether particles are to be read, for examples and their density.
    quality : DataFrame or None
        One row for each class; by default what the summary holds.

    Returns
    -------
    Run
    """
    summary = read_summary(folder)
    results, classes = summary["results"], summary["results"]["classes"]
    averages, pixel_size = _read_averages(folder)
    pixel_size = results.get("pixel_size_angstrom", pixel_size)
    missing = []
    model = _model_or_none(folder, missing)
    steps = [] if model is None else [step for _, step in getattr(model, "steps", [("", model)])]
    last = steps[-1] if steps else None
    stack = _particles_or_none(folder, summary, images_dir, missing) if examples else None
    labels = None if stack is None else class_labels(stack)
    return Run(
        name=folder.resolve().name,
        source=source_of(folder, summary),
        folder=str(folder),
        averages=averages,
        sizes=np.array(classes["size"]),
        resolution=np.array(
            [np.nan if value is None else value for value in classes["resolution"]], dtype=float
        ),
        pixel_size=pixel_size,
        nodes=_nodes_of(classes, last),
        topology=getattr(last, "topology", "grid"),
        positions=_positions(last, stack, missing),
        labels=labels,
        stack=stack,
        quality=quality_of(folder, len(averages), missing) if quality is None else quality,
        tree=getattr(last, "tree_", None) or tree_of(folder),
        first_averages=first_averages_of(last),
        traces=[trace for step in steps for trace in traces_of(step)],
        facts=facts_of(
            summary, [parameters_of(step, pixel_size) for step in described(steps)] if steps else []
        ),
        warnings=list(summary.get("warnings", [])),
        missing=missing,
    )


def read_summary(folder):
    """`summary.json` of a finished classification, looked over.

    Parameters
    ----------
    folder : Path
        The run.

    Returns
    -------
    dict
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise ParticleDataError(
            f"{folder} holds no {SUMMARY}: not a finished run. Give the --output of a run that ended."
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        classes = summary["results"]["classes"]
        if len(classes["size"]) != len(classes["resolution"]) or not classes["size"]:
            raise ValueError("its classes have no sizes or no resolutions")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParticleDataError(
            f"{path} is no summary of a classification ({error}). Run the classification again."
        ) from error
    return summary


def source_of(folder, summary):
    """What a selection says it was made from, so that it is not applied to another run unseen."""
    return {
        "folder": folder.resolve().name,
        "n_classes": len(summary["results"]["classes"]["size"]),
        "written_at": summary.get("written_at"),
    }


def quality_of(folder, n_classes, missing):
    """The table of class quality that the run wrote, or None where there is none."""
    path = folder / QUALITY
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, keep_default_na=True)
        table["reasons"] = table["reasons"].fillna("")
        table["keep"] = table["keep"].astype(bool)
        if len(table) != n_classes:
            raise ValueError(f"it has {len(table)} rows, the run {n_classes} classes")
    except (ValueError, KeyError) as error:
        missing.append(f"Classes are not judged here: {QUALITY} cannot be used ({error}).")
        return None
    return table


def tree_of(folder):
    """The tree that a deep clustering wrote, with classes counted from 0 as in `tree_`, or None."""
    path = folder / TREE
    if not path.is_file():
        return None
    tree = json.loads(path.read_text(encoding="utf-8"))
    for first in tree["classes"]:
        first["first_class"] -= 1
        for subclass in first["subclasses"]:
            subclass["label"] = subclass.pop("class_number") - 1
    return tree


def facts_of(summary, parameters):
    """(heading, [(name, value), ...]) of everything the run says of itself, for people."""
    results, unit = summary["results"], "px" if summary["results"].get("pixel_size_angstrom") is None else "Å"
    found = [
        (name, with_unit(key, as_text(results[key]), unit))
        for key, name in _RESULT_NAMES.items()
        if key in results
    ]
    found += [(f"{name} ({unit})", as_text(results[key])) for key, name in _LENGTHS.items() if key in results]
    accuracy = [(key.replace("_", " "), as_text(v)) for key, v in results.get("accuracy", {}).items()]
    options = [
        (f"--{key.replace('_', '-')}", with_unit(key, as_text(v), unit))
        for key, v in summary.get("options", {}).items()
    ]
    seconds = [(name, f"{value:.1f} s") for name, value in summary.get("seconds", {}).items()]
    versions = [(name, as_text(value)) for name, value in summary.get("versions", {}).items()]
    tables = [
        ("Results", found), ("Measured against the truth", accuracy),
        (f"Options of {summary.get('command', 'the run')}", options), *parameters,
        ("Time", seconds), ("Versions", [*versions, ("written at", summary.get("written_at", "unknown"))]),
    ]  # fmt: skip
    return [(heading, rows) for heading, rows in tables if rows]


def _read_averages(folder):
    path = folder / AVERAGES
    if not path.is_file():
        raise ParticleDataError(f"{folder} holds no {AVERAGES}. Run the classification again.")
    return read_mrc(path)


def _model_or_none(folder, missing):
    """The fitted model, or None and a warning: the classes can be looked at without it."""
    try:
        return load_model(folder / MODEL)
    except (ModelFileError, OSError) as error:
        missing.append(f"This page has no convergence: {error}")
        return None


def _particles_or_none(folder, summary, images_dir, missing):
    """The labelled particles, read as the run read them, or None and a word on why not."""
    options = summary.get("options", {})
    path = next((folder / name for name in summary["files"] if name.startswith("particles.")), None)
    problem = f"{SUMMARY} names no file of particles"
    for place in [] if path is None else _image_folders(options, images_dir):
        try:
            stack = _read_as_before(path, options, place)
            stack[:1].read()
            return stack.downsample(options["downsample"]) if options.get("downsample") else stack
        except (ParticleDataError, OSError, ValueError) as error:
            problem = str(error).split(". Pass ")[0]
    missing.append(
        f"This page shows no example particles: {problem}. Give the folder of their images with images_dir=."
    )
    return None


def _read_as_before(path, options, images_dir):
    """Particles with the options of the run; its warnings are not given twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParticleDataWarning)
        return read_particles(
            path,
            images_dir=images_dir,
            pixel_size=options.get("pixel_size"),
            ctf=not options.get("no_ctf", False),
            invert=options.get("invert", False),
            normalise=options.get("normalise", False) and (options.get("mask_diameter") or True),
        )


def _image_folders(options, images_dir):
    """Where to look for images, None being where `read_particles` looks itself."""
    if images_dir is not None:
        return [images_dir]
    given = options.get("particles")  # names of images are those of the input: they may be relative to it
    parents = [] if not isinstance(given, str) else list(Path(given).absolute().parents)[:3]
    return [options.get("images_dir"), *parents]


def _nodes_of(classes, model):
    """Latent positions of the classes: those of the summary, else those of the model."""
    if "latent_position" in classes:
        return np.array(classes["latent_position"], dtype=float)
    return getattr(model, "latent_nodes_", None)


def _positions(model, stack, missing):
    """Latent positions of the particles, as written or else from the model, or None."""
    if stack is None or not hasattr(model, "latent_nodes_"):
        return None
    metadata = stack.metadata
    written = sorted(name for name in metadata.columns if _LATENT.match(str(name)))
    if len(written) == model.latent_nodes_.shape[1]:
        return metadata[written].to_numpy(dtype=float)
    try:
        return model.transform(stack)
    except (ParticleDataError, OSError, ValueError) as error:
        missing.append(f"The atlas shows the density of the class sizes, not of the particles: {error}")
        return None
