"""Every warning about particle data by its short name: what it means, and what to do."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from sklearn_cryoem._core.validation import ParticleDataWarning


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
        "others for no good reason, and the noise is misjudged. Fits therefore normalise such images by "
        "their background.",
        "Extract again with normalisation, or read with normalise=True (--normalise).",
    ),
    Notice(
        "outliers",
        "Some images are outliers: their power is many times that of most or nearly none, they have hot "
        "pixels or stripes, or are torn. Each would weigh as much as many sound ones, so they take part in "
        "no statistic of a fit. They still get labels, and a mark in the table that is written (smlOutlier).",
        "Look at them; clip hot pixels with clip_hot_pixels=True (--clip-hot-pixels), extract torn ones "
        "again, or leave them out.",
    ),
    Notice(
        "shared-fault",
        "Most images have pixels or lines far off their neighbours. Averages then align on these.",
        "Clip hot pixels with clip_hot_pixels=True (--clip-hot-pixels); correct lines in micrographs, and "
        "extract again.",
    ),
    Notice(
        "unusable-images",
        "Some images are constant or hold NaN or infinity: nothing can be done with them.",
        "Leave them out with permissive=True (--permissive), or extract them again.",
    ),
    Notice(
        "blank-edges",
        "Some images are blank along an edge, as those are that were picked at the edge of a micrograph and "
        "padded. They may gather in classes of their own.",
        "Pick farther from the edge, or leave out their classes.",
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
        "The metadata do not give a pixel size; that of the headers of the images was taken, unless it is 1 "
        "Angstrom, which programs write that do not know it.",
        "Pass pixel_size= (--pixel-size) to be sure.",
    ),
    Notice(
        "unusual-values",
        "Numbers of the metadata are possible, but hardly any particles have such: a unit may be wrong, or a "
        "program wrote what stands for unknown.",
        "Look at the column that is named, and correct it, or leave it if it is right. The page of what is "
        "checked on reading says what is usual.",
    ),
    Notice(
        "pixel-size-unusual",
        "Hardly any particles have such a pixel size: a magnification may be wrong by a factor of ten, and "
        "with it the CTF and every resolution.",
        "Pass pixel_size= (--pixel-size), or leave it if it is right.",
    ),
    Notice(
        "images-named-twice",
        "Several rows name one image. Each of them is counted: classes look larger than they are, and half "
        "sets are not independent.",
        "Drop the repeats, unless they are meant.",
    ),
    Notice(
        "last-line-open",
        "A STAR file ends within a line that is shorter than all others. It may have been cut off; then its "
        "last value is another than was written, and rows are missing.",
        "Compare its length with that of the original and copy it again, or end it with a line break.",
    ),
    Notice(
        "shifts-without-angles",
        "The file gives shifts, but no in-plane angles, so that the particles have no poses, and the shifts "
        "are not used.",
        "Add the column of the angles (rlnAnglePsi) if it was lost, or align the particles.",
    ),
    Notice(
        "optics-unused",
        "The file gives beam tilt, higher aberrations or a distortion of the magnification. They are written "
        "out again, but not corrected: the CTF used is that of defocus, astigmatism, Cs, amplitude contrast, "
        "phase shift, B-factor and scale.",
        "Nothing, as a rule; extract with the distortion corrected if it is above one per cent.",
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
        "classes-by-chance",
        "Particles were put into classes by a second clustering, which had not seen them, and these classes "
        "have next to nothing in common with those of the first: what tells classes apart is the noise of "
        "their particles.",
        "Ask for fewer classes, give more particles, or look at the class averages whether the alignment has "
        "found a particle at all. Of a round particle that looks alike from everywhere there may be no more "
        "than one class.",
    ),
    Notice(
        "classes-follow-defocus",
        "Particles of like defocus are in the same classes, more than twice as much as by chance. A mask "
        "does it that cuts the rings of the CTF round the particle, or a CTF that is of other images.",
        "Give a larger mask_diameter= (--mask-diameter), and look at the CTF fits.",
    ),
    Notice(
        "stack-too-long",
        "An MRC file is longer than its header says. If the header is wrong in the number of images, those "
        "beyond it are not read; if it is wrong in the type of the pixels or in the length of the extended "
        "header, all images are wrong.",
        "Look at the images, and copy or extract the file again; correct the header if only the number of "
        "images in it is wrong.",
    ),
    Notice(
        "pixels-not-square",
        "The header of an MRC file gives pixels that are longer along one axis than along the other. Images "
        "are taken to have square pixels, of the length along x.",
        "Pass pixel_size= (--pixel-size), or correct the cell in the header.",
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
