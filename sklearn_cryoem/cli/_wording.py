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
    "pixel_size": "--pixel-size",
    "cache_folder=...": "--cache-folder",
    "cache_folder": "--cache-folder",
    "n_basis": "--basis",
    "topology=": "--topology=",
    "box=": "--box",
    "sklearn_cryoem.set_memory_limit": "SKLEARN_CRYOEM_MEMORY_LIMIT",
    "rescale=True": "--rescale",
}
_NOT_IN_THE_SHELL = (
    ", or metadata_only=True to do without images",
    " Fit again with warm_start=True to go on from here, or with the same checkpoint to go on from the last "
    "state kept there.",
    " Fit again with the same checkpoint to go on from here.",
    "choose some with optics_groups=, ",
    "choose groups of one size with optics_groups=, ",
    " Read the groups one by one with optics_groups= and pixel_size=, and join them with concatenate.",
    "; if they are aligned already, say so with stack.with_poses(Poses.identity(len(stack)))",
    " or tol of second=",
    " or tol",
    ", or raise alpha",
)
_OF_ESTIMATOR = {
    "DeepClusterer": {
        "images_per_subclass": "--images-per-subclass",
        "max_subclasses": "--max-subclasses",
        "max_iter": "--iterations",
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
        "n_clusters": "--classes",
        "n_components": "--latent-dim",
    },
}


def in_the_shell(text, options=None):
    """`text` with parameters named as the options that set them, on one line.

    Parameters
    ----------
    text : str
        A message of an error or a warning.
    options : argparse.Namespace or None
        Those of the command that shows it; what it has not is called an option of `classify`.

    Returns
    -------
    str
    """
    text = " ".join(text.split())
    for phrase in _NOT_IN_THE_SHELL:
        text = text.replace(phrase, "")
    words = dict(_ANYWHERE)
    for owner, own in _OF_ESTIMATOR.items():
        if owner in text:
            words |= own
    for python, shell in words.items():
        option = shell.rstrip("=")
        missing = options is not None and not hasattr(options, option.lstrip("-").replace("-", "_"))
        if missing and option.startswith("--"):
            shell = shell.replace(option, f"{option} of classify")
        text = re.sub(rf"(?<![\w-])'?{re.escape(python)}'?(?!\w)", shell, text)
    return text
