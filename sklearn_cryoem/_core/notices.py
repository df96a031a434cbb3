"""Every warning about particle data by its short name: what it means, and what to do."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from sklearn_cryoem._core.exceptions import ParticleDataWarning


@dataclass(frozen=True)
class Notice:
    """One kind of warning.

    Attributes
    ----------
    name : str
        Short and stable; a warning ends with it in square brackets.
    meaning : str
        What was seen, and why it matters.
    remedy : str
        What to do.
    """

    name: str
    meaning: str
    remedy: str


_ALL = (
    Notice(
        "dark-particles",
        "The middle of most images is darker than their rim. Particles have to be white on a dark ground, as "
        "RELION writes them after inverting; dark ones give class averages of no use.",
        "Read with invert=True (--invert), or leave it out if it was given.",
    ),
    Notice(
        "ctf-does-not-fit",
        "The rings that the CTF leaves in power spectra lie where another defocus would put them, so the CTF "
        "in the table is that of other images, its fit went wrong, or the pixel size or voltage is wrong; or "
        "the defocus is negative throughout. Every class average is blurred by it.",
        "Estimate the CTF again and look at its fits, take the table from the right job, make sure of the "
        "pixel size (pixel_size=, --pixel-size), or read with ctf=False (--no-ctf).",
    ),
    Notice(
        "ctf-fit-poor",
        "The program that estimated the CTF noted low figures of merit and fits to a low resolution only.",
        "Look at the fits, estimate the CTF again, or read with ctf=False (--no-ctf).",
    ),
    Notice(
        "not-normalised",
        "Level or contrast of the background differs from image to image. Some images then weigh more than "
        "others for no good reason, and the noise is misjudged.",
        "Read with normalise=True (--normalise), or extract again with normalisation.",
    ),
    Notice(
        "pixel-size-differs",
        "The headers of the images give another pixel size than the metadata. The one of the metadata is "
        "taken, as RELION and cryoSPARC do; if it is wrong, so are the CTF and every resolution.",
        "Find out which is right, and pass it as pixel_size= (--pixel-size); images that were binned or "
        "extracted anew need the metadata of the same job.",
    ),
    Notice(
        "pixel-size-from-header",
        "The metadata do not give a pixel size; that of the headers of the images was taken.",
        "Pass pixel_size= (--pixel-size) to be sure.",
    ),
    Notice(
        "no-poses",
        "Particles are to be clustered that have no in-plane angles and shifts. Unless they were aligned "
        "before they were written, classes then tell angles apart, not views.",
        "Align them with a MAPAligner first; say that they are aligned with "
        "stack.with_poses(Poses.identity(len(stack))).",
    ),
    Notice(
        "box-too-tight",
        "The mask takes nearly the whole box, so that hardly any background is left to tell signal from "
        "noise by, and particles that are off centre are cut.",
        "Give the particle's diameter to mask_diameter= (--mask-diameter), or extract in a larger box: one "
        "and a half times the particle at least.",
    ),
    Notice(
        "mask-too-small",
        "The mask is a small part of the box; particles are larger as a rule, so the unit may be wrong.",
        "Make sure that mask_diameter= (--mask-diameter) is in Angstrom, in pixels only where the pixel size "
        "is unknown.",
    ),
    Notice(
        "stack-truncated",
        "A stack of images is shorter than its header says, though the particles used of it are whole.",
        "Copy or extract that stack again.",
    ),
    Notice(
        "columns-lost",
        "The format that is written has no place for some columns of the particles.",
        "Keep the input file, or write the format that came in.",
    ),
    Notice(
        "phantom-wraps",
        "Part of a volume lies outside the images that are simulated of it, and wraps round.",
        "Raise box= (--box) or pixel_size= (--pixel-size).",
    ),
)

NOTICES = {notice.name: notice for notice in _ALL}


def notice_text(name: str, text: str) -> str:
    """`text` with the name of its notice at the end, by which it can be looked up.

    Parameters
    ----------
    name : str
        One of `NOTICES`.
    text : str
        What was found, with its numbers, and what to do.

    Raises
    ------
    KeyError
        If there is no notice of that name.
    """
    return f"{text} [{NOTICES[name].name}]"


def notify(name: str, text: str, *, stacklevel: int = 1) -> None:
    """Warn by a `ParticleDataWarning` that ends with the name of its notice.

    Parameters
    ----------
    name : str
        One of `NOTICES`.
    text : str
        What was found, with its numbers, and what to do.
    stacklevel : int
        1 blames the caller of this function, 2 the caller's caller and so on.
    """
    warnings.warn(notice_text(name, text), ParticleDataWarning, stacklevel=stacklevel + 1)
