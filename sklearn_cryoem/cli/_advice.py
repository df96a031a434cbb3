"""Mistakes of a run's options and data that can be seen before any work is done, and where its images are."""

import math
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli.console import CommandError

SMALL_MASK = 0.25  # of the box: particles are extracted in boxes one and a half to three times their size
LOOKED_AT = 200  # images, spread over all
DARK_PART = 0.75  # of them
DARK_T = 5.0  # standard errors that their mean contrast lies below 0


def check_options(options, stack, console):
    """Refuse or question lengths and numbers that do not go with the particles.

    Parameters
    ----------
    options : argparse.Namespace
        With everything that `classify.add_classification` defines.
    stack : ParticleStack
        What was read.
    console : Console
        Says the warnings.

    Raises
    ------
    CommandError
        If there would be more classes than particles, or shifts beyond half the box.
    """
    n_classes = math.prod(options.classes) if isinstance(options.classes, tuple) else options.classes
    if n_classes > len(stack):
        raise CommandError(
            f"--classes asks for {n_classes:,} classes of {len(stack):,} particles. Ask for fewer: one class "
            f"for every 20 to 100 particles is a good start."
        )
    unit = "px" if stack.pixel_size is None else "A"
    pixel = stack.pixel_size or 1.0
    side = stack.box * pixel
    shift, mask, finest = options.max_shift, options.mask_diameter, options.max_resolution
    if shift is not None and shift > side / 2 and not options.skip_align:
        raise CommandError(
            f"--max-shift is {shift:g} {unit}, more than half the box ({side / 2:.4g} {unit}). Give how far "
            f"particles are off the centre of their boxes, at most."
        )
    if mask is not None and mask < SMALL_MASK * side:
        console.warn(
            f"--mask-diameter {mask:g} {unit} is {mask / side:.0%} of the box ({side:.4g} {unit}). Particles "
            f"are larger as a rule: make sure that it is in {'pixels' if unit == 'px' else 'Angstrom'}."
        )
    if finest is not None and finest < 2 * pixel:
        console.warn(
            f"--max-resolution {finest:g} {unit} is finer than the pixels hold; {2 * pixel:.4g} {unit} is "
            f"the limit, and is taken."
        )


def question_contrast(stack, console, *, inverted):
    """Warn if the particles look dark on a bright ground.

    Parameters
    ----------
    stack : ParticleStack
        What was read; some images spread over it are looked at.
    console : Console
        Says the warning.
    inverted : bool
        Whether the user asked for inversion: then the remedy is to leave that out.
    """
    rows = np.unique(np.linspace(0, len(stack) - 1, LOOKED_AT).astype(int))
    contrast = centre_above_rim(stack.read(rows))  # (n_rows,)
    dark = np.mean(contrast < 0)
    too_sure = contrast.mean() * math.sqrt(len(rows) - 1) < -DARK_T * contrast.std()
    if dark > DARK_PART and too_sure:
        remedy = "Leave --invert out" if inverted else "Pass --invert"
        console.warn(
            f"the particles look dark on a bright ground (in {dark:.0%} of {len(rows)} images the middle is "
            f"darker than the rim), and averages will be of no use. {remedy}."
        )


def centre_above_rim(images):
    """Mean of the inner half of each image less the mean of its rim, along the radius.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        White particles on black have a positive contrast.

    Returns
    -------
    ndarray of shape (n_images,)
    """
    box = images.shape[1]
    axis = np.arange(box) - box // 2
    radius = np.hypot(axis[:, None], axis) / (box / 2)  # (D, D)
    inside, rim = radius < 0.5, (radius > 0.8) & (radius < 1.0)
    return images[:, inside].mean(axis=1) - images[:, rim].mean(axis=1)


def where_images_are(written, stack, options):
    """Folder to pass as images_dir= to read `written` back, or None if none is needed.

    Image names keep the form they came in (RELION wants them relative to its project), so a run in a folder
    elsewhere does not find them by itself.

    Parameters
    ----------
    written : Path
        The labelled particles.
    stack : ParticleStack
        Their table, with the names.
    options : argparse.Namespace
        With `particles` and `images_dir`.

    Returns
    -------
    Path or None
    """
    from sklearn_cryoem.io._locate import ImageFinder

    column = next((name for name in ("rlnImageName", "blob/path") if name in stack.metadata), None)
    if column is None:
        return None
    name = str(stack.metadata[column].iloc[0]).rpartition("@")[2].lstrip(">")
    found = ImageFinder(options.particles, options.images_dir).find(name)
    if found is None or ImageFinder(written).find(name) is not None:
        return None
    if options.images_dir is not None:
        return Path(options.images_dir)
    return Path(str(Path(found).absolute()).removesuffix(str(Path(name))))
