"""What a classification says of its classes: their quality, their files, and which to keep."""

from functools import partial

import numpy as np

QUALITY, SUGGESTED, AVERAGES = "quality.csv", "suggested.json", "class_averages.mrcs"
CLASS_STAR = "class_averages_model.star"
CLASS_FILES = (AVERAGES, CLASS_STAR, QUALITY, SUGGESTED)
_STAR_COLUMNS = {"clsSize": "size", "clsRank": "rank", "clsScore": "score", "clsKeep": "keep"}
_DIGITS = "%.6g"


def places_and_posterior(clusterer, stack):
    """Latent position and posterior of its class of every particle, in one pass.

    Parameters
    ----------
    clusterer : SMLClusterer
        Fitted.
    stack : ParticleStack
        Aligned particles.

    Returns
    -------
    positions : ndarray of shape (n_images, n_components)
    posterior : ndarray of shape (n_images,)
    """
    basis, mode = clusterer._manifold.basis, clusterer.position
    nodes = basis.nodes if mode == "mode" else basis.embedding  # as clusterer.transform has it
    both = clusterer._posteriors(stack, partial(_place_and_certainty, nodes, mode))
    places = both[:, :-1]
    return places if mode == "mode" else basis.space.unembed(places), both[:, -1]


def _place_and_certainty(nodes, mode, posterior):
    from sklearn_cryoem.manifold.classes import latent_positions

    places = latent_positions(posterior, nodes, mode)
    return np.column_stack([places, posterior.responsibilities.max(axis=1)])


def measure_classes(stack, clusterer, positions, posterior):
    """Table of `class_quality` of a fitted clusterer."""
    from sklearn_cryoem.quality import class_quality

    return class_quality(
        stack,
        clusterer.labels_,
        n_classes=len(clusterer.class_averages_),
        soft_sizes=clusterer.soft_class_sizes_,
        latent_positions=positions,
        posterior=posterior,
        mask_diameter=clusterer.mask_diameter,
        max_resolution=clusterer.max_resolution,
        n_jobs=clusterer.n_jobs,
        verbose=clusterer.verbose,
    )


def write_classes(averages, pixel_size, quality, folder):
    """Write class averages, their STAR file, the table of quality and the suggested selection.

    Parameters
    ----------
    averages : ndarray of shape (n_classes, D, D)
        Class averages.
    pixel_size : float or None
        In Angstrom.
    quality : DataFrame
        From `class_quality`, a row for each.
    folder : RunFolder
        Where to.
    """
    from sklearn_cryoem.io import write_class_averages, write_selection

    rounded = quality[list(_STAR_COLUMNS.values())].round(
        6
    )  # a table: pandas before 2.2 rounds no Series of bool
    columns = {star: rounded[name].to_numpy() for star, name in _STAR_COLUMNS.items()}
    write_class_averages(
        folder / AVERAGES,
        averages,
        pixel_size,
        sizes=quality["size"],
        resolutions=quality["resolution"],
        columns=columns,
        overwrite=folder.force,
    )
    with folder.writing(QUALITY) as path:
        quality.to_csv(path, index=False, float_format=_DIGITS)
    source = {"folder": folder.path.name, "n_classes": len(quality), "written_at": folder.written_at}
    kept = quality.loc[quality["keep"], "class"]
    write_selection(folder / SUGGESTED, kept, source=source, overwrite=folder.force)


def tell_suggestion(results, console):
    """Say how much of the run the suggestion would keep."""
    console.say(
        f"suggestion: keep {results['n_classes_suggested']} classes with "
        f"{results['n_particles_suggested']:,} of {results['n_particles']:,} particles; {QUALITY} has the "
        "reasons against the others. Look at the gallery before you follow it with sklearn-cryoem select"
    )
