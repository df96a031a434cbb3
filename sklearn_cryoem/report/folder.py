"""From the folder of a run to its facts: summary and averages are needed, model and particles may be gone."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ModelFileError, ParticleDataError, ParticleDataWarning
from sklearn_cryoem.estimators import load_model
from sklearn_cryoem.io import read_mrc, read_particles
from sklearn_cryoem.particles import class_labels
from sklearn_cryoem.particles.classes import steps_of
from sklearn_cryoem.plotting.convergence import fits_of
from sklearn_cryoem.report.run import Run, as_text, facts_of_model, with_unit

SUMMARY, AVERAGES, MODEL = "summary.json", "class_averages.mrcs", "model.npz"
QUALITY, TREE = "quality.csv", "tree.json"
_RESULTS_WITH_LENGTH = ("finest_class_resolution", "alignment_resolution", "alignment_pass_resolution")


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
    if not (folder / AVERAGES).is_file():
        raise ParticleDataError(f"{folder} holds no {AVERAGES}. Run the classification again.")
    averages, pixel_size = read_mrc(folder / AVERAGES)
    pixel_size = results.get("pixel_size_angstrom", pixel_size)
    missing = []
    model = _model_or_none(folder, missing)
    stack = _particles_or_none(folder, summary, images_dir, missing) if examples else None
    of_model = {"facts": []} if model is None else facts_of_model(model, pixel_size)
    of_model["facts"] = _facts_of_summary(summary, of_model["facts"])
    if "latent_position" in classes:
        of_model["nodes"] = np.array(classes["latent_position"], dtype=float)
    if of_model.get("tree") is None:
        of_model["tree"] = _tree_of(folder)
    return Run(
        name=folder.resolve().name,
        source=source_of(folder, summary),
        folder=str(folder.resolve()),
        averages=averages,
        sizes=np.array(classes["size"]),
        resolution=pd.Series(classes["resolution"], dtype=float).to_numpy(),
        pixel_size=pixel_size,
        positions=_positions(model, stack, missing),
        labels=None if stack is None else class_labels(stack),
        stack=stack,
        quality=_quality_of(folder, len(averages), missing) if quality is None else quality,
        fits=[] if model is None else fits_of(model, stack),
        warnings=list(summary.get("warnings", [])),
        missing=missing,
        **of_model,
    )


def read_summary(folder):
    """Read and check `summary.json` of a finished classification.

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
        if "classes" not in summary["results"]:
            raise ValueError(f"it is of {summary['command']}")
        classes = summary["results"]["classes"]
        if len(classes["size"]) != len(classes["resolution"]) or not classes["size"]:
            raise ValueError("its classes have no sizes or no resolutions")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParticleDataError(
            f"{path} is no summary of a classification ({error}). Give the folder of a finished one."
        ) from error
    return summary


def source_of(folder, summary):
    """What a selection says it was made from, so that it is not applied to another run unseen."""
    return {
        "folder": folder.resolve().name,
        "n_classes": len(summary["results"]["classes"]["size"]),
        "started_at": summary.get("started_at"),
    }


def _quality_of(folder, n_classes, missing):
    """The table of class quality that the run wrote, or None where there is none."""
    path = folder / QUALITY
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
        table["reasons"] = table["reasons"].fillna("")
        table["keep"] = table["keep"].astype(bool)
        if len(table) != n_classes:
            raise ValueError(f"it has {len(table)} rows, the run {n_classes} classes")
    except (ValueError, KeyError) as error:
        missing.append(f"Classes are not judged here: {QUALITY} cannot be used ({error}).")
        return None
    return table


def _tree_of(folder):
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


def _facts_of_summary(summary, parameters):
    """(heading, [(name, value), ...]) of everything the run says of itself, for people."""
    results = summary["results"]
    unit = "px" if results.get("pixel_size_angstrom") is None else "Å"

    def rows(values, name_of):
        return [(name_of(key), with_unit(key, as_text(value), unit)) for key, value in values.items()]

    def words(key):
        length = f" ({unit})" if key in _RESULTS_WITH_LENGTH else ""
        return key.removeprefix("n_").replace("_", " ") + length

    # classes and accuracy have places of their own
    plain = {key: value for key, value in results.items() if not isinstance(value, dict)}
    seconds = {name: f"{value:.1f} s" for name, value in summary.get("seconds", {}).items()}
    versions = {**summary.get("versions", {}), "started at": summary.get("started_at", "unknown")}
    tables = [
        ("Results", rows(plain, words)),
        ("Measured against the truth", rows(results.get("accuracy", {}), words)),
        (f"Options of {summary.get('command', 'the run')}",
         rows(summary.get("options", {}), lambda key: f"--{key.replace('_', '-')}")),
        *parameters,
        ("Time", rows(seconds, str)),
        ("Versions", rows(versions, str)),
    ]  # fmt: skip
    return [(heading, shown) for heading, shown in tables if shown]


def _model_or_none(folder, missing):
    """The fitted model, or None and a warning: the classes can be looked at without it."""
    try:
        return load_model(folder / MODEL)
    except (ModelFileError, OSError) as error:
        missing.append(f"This page has no convergence: {error}")
        return None


def _particles_or_none(folder, summary, images_dir, missing):
    """The labelled particles, read as the run read them, or None and the reason."""
    options = summary.get("options", {})
    path = next((folder / name for name in summary["files"] if name.startswith("particles.")), None)
    problem = f"{SUMMARY} names no file of particles" if path is None else ""
    for place in [] if path is None else _image_folders(options, images_dir):
        try:
            stack = _read_as_before(path, options, place)
            stack[:1].read()
            return stack.downsample(options["downsample"]) if options.get("downsample") else stack
        except (ParticleDataError, OSError, ValueError) as error:
            problem = problem or str(error)  # of the folder that the run itself used
    missing.append(f"This page shows no example particles: {problem}")
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
            rescale=options.get("rescale", False),
            normalise=options.get("normalise", False) and (options.get("mask_diameter") or True),
        )


def _image_folders(options, images_dir):
    """Where to look for images, None being where `read_particles` looks itself."""
    if images_dir is not None:
        return [images_dir]
    given = options.get("particles")  # names of images are those of the input: they may be relative to it
    given = Path(given).absolute() if isinstance(given, str) else Path()
    return [options.get("images_dir"), *[folder for folder in (given, *given.parents[:3]) if folder.is_dir()]]


def _positions(model, stack, missing):
    """Latent positions of the particles, as written or else from the model, or None."""
    last = None if model is None else steps_of(model)[-1]
    if stack is None or not hasattr(last, "latent_nodes_"):
        return None
    # The column is called smlLatent1 in a STAR file and sklearn_cryoem/smlLatent1 in a .cs file.
    names = [str(name) for name in stack.metadata.columns]
    written = sorted(name for name in names if name.rpartition("/")[2].startswith("smlLatent"))
    if len(written) == last.latent_nodes_.shape[1]:
        return stack.metadata[written].to_numpy(dtype=float)
    try:
        return last.transform(stack)
    except (ParticleDataError, OSError, ValueError) as error:
        missing.append(f"The atlas shows the density of the class sizes, not of the particles: {error}")
        return None
