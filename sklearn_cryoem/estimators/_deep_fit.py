"""The steps of DeepClusterer.fit: how many sub-classes, one manifold for each class, one flat numbering."""

import warnings
from functools import partial

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem._core.exceptions import ParticleDataWarning
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.workers import ordered_map
from sklearn_cryoem.estimators._deep_first import steps_of
from sklearn_cryoem.estimators._deep_keep import fit_once
from sklearn_cryoem.manifold.classes import effective_count


def n_subclasses(size, images_per_subclass, min_class_size, max_subclasses):
    """Sub-classes of a class of `size` images: one for every `images_per_subclass`, 1 if it stays whole.

    Parameters
    ----------
    size : int
        Images of the class.
    images_per_subclass : int
        How many images a sub-class should have, on average.
    min_class_size : int or None
        Smaller classes stay whole; None for twice `images_per_subclass`.
    max_subclasses : int or None
        At most so many.
    """
    smallest = 2 * images_per_subclass if min_class_size is None else min_class_size
    if size < max(smallest, 2):
        return 1
    most = size if max_subclasses is None else min(size, max_subclasses)
    return int(min(max(size // images_per_subclass, 2), most))


def fit_subclasses(second, data, rows, counts, seeds, *, folder=None, n_jobs, verbose):
    """Fit a copy of `second` to every class that is divided.

    Parameters
    ----------
    second : SMLClusterer or Pipeline that ends in one
        Copied for every class, with its number of classes set.
    data : ParticleStack or ndarray
        All particles, aligned.
    rows : list of ndarray
        Particles of each class.
    counts : list of int
        Sub-classes of each; 1 leaves it whole.
    seeds : ndarray of shape (n_classes,), int
        Seed of each.
    folder : path-like or None
        Where classes under way keep their states, and those that are done their results.
    n_jobs : int or None
        Classes fitted at a time. A class that is alone gets all workers.
    verbose : int
        1 shows progress.

    Returns
    -------
    clusterers : list of SMLClusterer, Pipeline or None
        None for classes that stay whole.
    parts : list of Part
        Files that may go when everything is done.
    """
    divided = sorted((k for k in range(len(rows)) if counts[k] > 1), key=lambda k: -len(rows[k]))
    inner = n_jobs if len(divided) == 1 else 1  # workers are not nested
    tasks = [(_copy_of(second, counts[k], inner, int(seeds[k])), rows[k]) for k in divided]
    clusterers, parts = [None] * len(rows), []
    with (
        progress(len(tasks), "DeepClusterer: classes", verbose=verbose) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # told once for all classes, by the caller
        warnings.filterwarnings(
            "ignore", r"(?s).*\[(box-too-tight|no-poses)\]$", ParticleDataWarning
        )  # so is this
        fits = ordered_map(partial(_fit_class, data, folder), tasks, n_jobs=1 if len(tasks) == 1 else n_jobs)
        for k, part in zip(divided, fits, strict=True):
            clusterers[k] = part.fitted
            parts.append(part)
            bar.update()
    return clusterers, parts


def _fit_class(data, folder, task):
    clusterer, rows = task
    return fit_once(clusterer, data[rows], folder)


def _copy_of(second, n_clusters, n_jobs, seed):
    """Copy of `second` for one class."""
    copy = clone(second)
    for step in steps_of(copy):
        wanted = {"n_jobs": n_jobs, "random_state": seed}
        step.set_params(**{name: value for name, value in wanted.items() if name in step.get_params()})
    steps_of(copy)[-1].set_params(n_clusters=n_clusters)
    return copy


def leaves_of(fitted):
    """Sub-class of each node: nodes without images are none, and belong to that of the nearest other node.

    Parameters
    ----------
    fitted : SMLClusterer, Pipeline or None
        Of one class.

    Returns
    -------
    leaf_of_node : ndarray of shape (n_nodes,), int
        Numbered in the order of the nodes; one for a class that stays whole.
    occupied : ndarray of shape (n_leaves,), int
        Nodes that have images.
    """
    if fitted is None:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    last = steps_of(fitted)[-1]
    occupied = np.unique(last.labels_)
    offset = last.latent_nodes_[:, None] - last.latent_nodes_[occupied]  # (n_nodes, n_leaves, n_components)
    return np.square(offset).sum(axis=2).argmin(axis=1), occupied


def images_of(fitted, occupied):
    """Averages and resolutions of the nodes that have images, in the space of the data."""
    last = steps_of(fitted)[-1]
    averages = last.class_averages_[occupied]
    if fitted is not last:
        averages = fitted[:-1].inverse_transform(averages)
    return averages, last.class_resolution_[occupied]


def summarise(clusterers, rows, n_samples, averages, resolution):
    """Attributes of the flat classes: labels, averages, sizes, resolutions, and the tree above them.

    Parameters
    ----------
    clusterers : list of SMLClusterer, Pipeline or None
        Of each first class.
    rows : list of ndarray
        Particles of each first class that its clusterer learned from.
    n_samples : int
        Number of particles; those in none of `rows` get the label -1.
    averages, resolution : ndarrays
        Of the first classes: those of the ones that stay whole.
    """
    leaves, occupied = zip(*map(leaves_of, clusterers), strict=True)
    n_leaves = [len(nodes) for nodes in occupied]
    starts = np.cumsum([0, *n_leaves])
    labels = np.full(n_samples, -1)
    found = []
    for k, (fitted, members) in enumerate(zip(clusterers, rows, strict=True)):
        labels[members] = starts[k] + (0 if fitted is None else leaves[k][steps_of(fitted)[-1].labels_])
        whole = averages[k][None], resolution[k : k + 1]
        found.append(whole if fitted is None else images_of(fitted, occupied[k]))
    sizes = np.bincount(labels[labels >= 0], minlength=starts[-1])
    children = [np.arange(start, start + n) for start, n in zip(starts[:-1], n_leaves, strict=True)]
    return {
        "labels_": labels,
        "parent_label_": np.repeat(np.arange(len(rows)), n_leaves),
        "children_": children,
        "class_averages_": np.concatenate([part for part, _ in found]),
        "class_resolution_": np.concatenate([part for _, part in found]),
        "class_sizes_": sizes,
        "n_effective_clusters_": effective_count(sizes),
        "tree_": describe_tree(clusterers, rows, children, sizes, occupied),
        "_leaf_of_node": list(leaves),
    }


def describe_tree(clusterers, rows, children, sizes, occupied):
    """The classes and their sub-classes in plain lists and numbers, ready for JSON."""
    classes = []
    for k, fitted in enumerate(clusterers):
        last = None if fitted is None else steps_of(fitted)[-1]
        subclasses = [{"label": int(label), "n_images": int(sizes[label])} for label in children[k]]
        if last is not None:
            for subclass, position in zip(subclasses, last.latent_nodes_[occupied[k]], strict=True):
                subclass["latent_position"] = [float(value) for value in position]
        classes.append(
            {
                "first_class": k,
                "n_images": len(rows[k]),
                "is_whole": fitted is None,
                "grid_shape": [1] if last is None else [int(side) for side in last.grid_shape_],
                "subclasses": subclasses,
            }
        )
    return {"n_images": int(sizes.sum()), "n_classes": len(sizes), "classes": classes}
