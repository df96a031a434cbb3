"""Messages of the library in the words of the command line: its parameters are options there."""

import re

_ANYWHERE = {
    "images_dir=": "--images-dir",
    "permissive=True": "--permissive",
    "overwrite=True": "--force",
    "invert=True": "--invert",
    "normalise=True": "--normalise",
    "clip_hot_pixels=True": "--clip-hot-pixels",
    "ctf=False": "--no-ctf",
    "mask_diameter": "--mask-diameter",
    "max_resolution": "--max-resolution",
    "max_shift": "--max-shift",
    "passthrough=": "--passthrough",
    "n_jobs": "--jobs",
    "pixel_size=": "--pixel-size",
    "sklearn_cryoem.set_memory_limit": "SKLEARN_CRYOEM_MEMORY_LIMIT",
    "rescale=True": "--rescale",
}
_NOT_IN_THE_SHELL = (
    ", or metadata_only=True to do without images",
    " Fit again with warm_start=True to go on from here, or with the same checkpoint to go on from the last "
    "state kept there.",
    " Fit again with the same checkpoint to go on from here.",
)
_OF_ESTIMATOR = {
    "DeepClusterer": {
        "images_per_subclass": "--images-per-subclass",
        "max_subclasses": "--max-subclasses",
        "min_class_size": "--min-class-size",
    },
    "MAPAligner": {
        "align_mirrored": "--align-mirrored",
        "angle_range": "--angle-range",
        "max_iter": "--align-iterations",
        "n_batches": "--align-batches",
        "n_clusters": "--align-classes",
        "n_init": "--align-starts",
        "n_references": "--align-references",
    },
    "SMLClusterer": {
        "max_iter": "--iterations",
        "n_basis": "--basis",
        "n_clusters": "--classes",
        "n_components": "--latent-dim",
        "topology": "--topology",
    },
}


def in_the_shell(text):
    """`text` with parameters named as the options that set them, on one line.

    Parameters
    ----------
    text : str
        A message of an error or a warning.

    Returns
    -------
    str
    """
    text = " ".join(text.split())
    for phrase in _NOT_IN_THE_SHELL:
        text = text.replace(phrase, "")
    words = dict(_ANYWHERE)
    for owner, options in _OF_ESTIMATOR.items():
        if owner in text:
            words |= options
    for python, shell in words.items():
        text = re.sub(rf"(?<![\w-])'?{re.escape(python)}'?(?!\w)", shell, text)
    return text
