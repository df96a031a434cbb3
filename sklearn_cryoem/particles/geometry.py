"""Whether lengths go together: a mask and the box, the pixel size of metadata and of image headers."""

from __future__ import annotations

import numpy as np

LARGEST_MASK = 0.95  # of the box
SMALLEST_MASK = 0.25
SAME_PIXEL_SIZE = 0.02  # relative
FITTED_PIXEL_SIZE = 0.01  # relative
UNKNOWN_PIXEL_SIZE = 1.0  # Angstrom, in headers: what programs write that do not know it


def box_problem(box: int, pixel_size: float | None, diameter: float) -> tuple[str, str] | None:
    """Name and text of what is wrong with a mask in a box; None if it goes well.

    Parameters
    ----------
    box : int
        Side of the images in pixels.
    pixel_size : float or None
        In Angstrom.
    diameter : float
        Of the mask, in Angstrom (pixels where the pixel size is unknown).

    Returns
    -------
    tuple of (str, str) or None
    """
    unit = "px" if pixel_size is None else "A"
    side = box * (pixel_size or 1.0)
    share = diameter / side
    if share > LARGEST_MASK:
        return "box-too-tight", (
            f"mask_diameter {diameter:g} {unit} takes {share:.0%} of the box ({side:.4g} {unit}), so that no "
            "background is left to judge the noise by. Give the particle's diameter, or extract larger boxes."
        )
    if share < SMALLEST_MASK:
        return "mask-too-small", (
            f"mask_diameter {diameter:g} {unit} is {share:.0%} of the box ({side:.4g} {unit}). Particles are "
            f"larger as a rule: make sure that it is in {'pixels' if unit == 'px' else 'Angstrom'}."
        )
    return None


def check_same_pixel_size(pixel_size: float | None, fitted: float | None) -> None:
    """Raise unless particles have the pixel size that a model was fitted at.

    Parameters
    ----------
    pixel_size : float or None
        Of the particles, in Angstrom.
    fitted : float or None
        Of those of the fit. The two may differ by one per cent, as headers are rounded.
    """
    same = pixel_size == fitted
    if pixel_size is not None and fitted is not None:
        same = abs(pixel_size / fitted - 1.0) <= FITTED_PIXEL_SIZE
    if not same:
        raise ValueError(
            f"The particles have pixel_size={pixel_size}, those that the model was fitted to have "
            f"pixel_size={fitted}. Bring them to the same pixel size, or fit again."
        )


def pixel_sizes_differ(pixel_size: float, headers: list[float | None]) -> str | None:
    """What to say where the headers of images give another pixel size; None where they do not.

    Parameters
    ----------
    pixel_size : float
        By the metadata, in Angstrom.
    headers : list of float or None
        By the headers of the files; `UNKNOWN_PIXEL_SIZE` says nothing.
    """
    known = np.array([size for size in headers if size not in (None, UNKNOWN_PIXEL_SIZE)])
    other = np.abs(known / pixel_size - 1.0) > SAME_PIXEL_SIZE
    if not other.any():
        return None
    some = "" if other.all() else f" of {other.sum()} of {len(known)} stacks"
    return (
        f"the metadata say {pixel_size:.4g} A per pixel, the headers of the images{some} "
        f"{known[other][0]:.4g} A. The former is taken; pass pixel_size= if it is wrong: the CTF and all "
        "resolutions depend on it."
    )
