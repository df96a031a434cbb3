"""Mistakes of a run's options and data that can be seen before any work is done, and where its images are."""

import math
from pathlib import Path

from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.console import CommandError


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
    pixel = stack.pixel_length
    side = stack.box * pixel
    shift, finest = options.max_shift, options.max_resolution
    if shift is not None and shift > side / 2 and not options.skip_align:
        raise CommandError(
            f"--max-shift is {shift:g} {unit}, more than half the box ({side / 2:.4g} {unit}). Give how far "
            f"particles are off the centre of their boxes, at most."
        )
    if finest is not None and finest < 2 * pixel:
        console.warn(
            f"--max-resolution {finest:g} {unit} is finer than the pixels hold; {2 * pixel:.4g} {unit} is "
            f"the limit, and is taken."
        )


def question_particles(stack, console, *, mask_diameter=None, pixel_size=None):
    """Look at some particles and warn of what looks wrong with them.

    Parameters
    ----------
    stack : ParticleStack
        What was read.
    console : Console
        Says the warnings.
    mask_diameter : float or None
        That the user asked for.
    pixel_size : float or None
        That the user gave, who then knows that the files say otherwise.

    Returns
    -------
    list of Finding
        What was warned of.
    """
    from sklearn_cryoem.quality import check_particles

    found = check_particles(stack, mask_diameter=mask_diameter, warn=False)
    if pixel_size is not None:
        found = [finding for finding in found if finding.name != "pixel-size-differs"]
    for finding in found:
        console.warn(in_the_shell(str(finding), console.options))
    return found


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
    from sklearn_cryoem.io import find_image
    from sklearn_cryoem.io.image_files import split_format, split_image_name

    column = next((name for name in ("rlnImageName", "blob/path") if name in stack.metadata), None)
    if column is None:
        return None
    name = str(stack.metadata[column].iloc[0])
    name = split_image_name(name)[1] if column == "rlnImageName" else name.removeprefix(">")
    name, _ = split_format(name)
    found = find_image(name, options.particles, images_dir=options.images_dir)
    if found is None or find_image(name, written) is not None:
        return None
    if options.images_dir is not None:
        return Path(options.images_dir)
    return Path(str(found.absolute()).removesuffix(str(Path(name))))
