"""Options that several commands share, the parameters they set, and the types that check their values."""

import argparse
import inspect
import os
from pathlib import Path

from sklearn_cryoem.manifold.topology import TOPOLOGIES

RUN_FILE = "run.yaml"
SHOW_DEFAULT = "(default: %(default)s)"


# ---------------------------------------------------------------- types
def _number(kind, is_allowed, expected):
    """A type of argparse: numbers of a kind that are allowed; `expected` says in words which."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return convert


count = _number(int, lambda value: value >= 1, "a whole number from 1")
whole = _number(int, lambda value: value >= 0, "a whole number from 0")
positive = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
not_negative = _number(float, lambda value: 0 <= value < float("inf"), "a number from 0")
fraction = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
percent = _number(float, lambda value: 0 <= value < 100, "a number from 0 to below 100")
angle = _number(float, lambda value: 0 <= value <= 180, "a number of degrees from 0 to 180")


def count_or_grid(text):
    """A whole number (100), or the shape of a latent grid (10x10)."""
    try:
        sizes = tuple(count(part) for part in text.lower().split("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from 1, nor a grid such as 10x10"
        ) from None
    return sizes[0] if len(sizes) == 1 else sizes


def count_or_auto(text):
    """A whole number, or the word auto."""
    return text if text == "auto" else count(text)


# ---------------------------------------------------------------- tables
# (flag, metavar, type, default, help), after the parameter that it sets. Of type bool an option is a switch;
# a tuple in the place of the type holds all values that it may have.
FORCE = ("--force", None, bool, False, "replace files that are there")
IMAGES_DIR = ("--images-dir", "DIR", Path, None, "where the image stacks are, if moved")
PIXEL_SIZE = ("--pixel-size", "A", positive, None, "Angstrom per pixel (default: what the file says)")
READING = [
    ("pixel_size", *PIXEL_SIZE),
    ("rescale", "--rescale", None, bool, False,
     "bring particles of several pixel sizes and boxes to one"),
    ("invert", "--invert", None, bool, False, "invert the contrast: for dark particles"),
    ("ctf", "--no-ctf", None, bool, False, "take the CTF as 1, even if the file has one"),
    ("normalise", "--normalise", None, bool, False,
     "give each background mean 0 and standard deviation 1"),
    ("clip_hot_pixels", "--clip-hot-pixels", None, bool, False,
     "replace pixels that are far off their neighbours"),
    ("downsample", "--downsample", "PIXELS", count, None,
     "crop images in Fourier space to this box, in pixels"),
    ("permissive", "--permissive", None, bool, False,
     "leave out particles that cannot be used, and say which"),
]  # fmt: skip
ALIGNMENT_AND_CLUSTERING = [
    ("mask_diameter", "--mask-diameter", "A", positive, None,
     "diameter of the round mask, in Angstrom (default: chosen from the box)"),
    ("max_resolution", "--max-resolution", "A", positive, None,
     "finest detail to use, in Angstrom (default: as fine as pixel size and signal allow)"),
    ("min_resolution", "--min-resolution", "A", positive, None,
     "coarsest detail that is compared, in Angstrom: 40 to 60 where micelles, nanodiscs or uneven ice would "
     "drive the classes (default: all is)"),
]  # fmt: skip
ALIGNMENT = [
    ("n_clusters", "--align-classes", "N", count, 50, "classes while aligning"),
    ("n_references", "--align-references", "N", count, None,
     "references that are merged into these classes in the end: more are more accurate and slower "
     "(default: 2.5 to a class, as far as there are particles)"),
    ("init", "--ref", "FILE", Path, None,
     "begin with these averages (.mrcs) or with projections of this map (.mrc), not with random references"),
    ("n_batches", "--align-batches", "N", whole, None, "mini-batches to begin with (default: the aligner's)"),
    ("max_iter", "--align-iterations", "N", count, None,
     "passes over all particles, at most (default: the aligner's)"),
    ("max_shift", "--max-shift", "A", positive, None,
     "particles are off centre by at most this, in Angstrom (default: chosen from the box)"),
    ("angle_range", "--angle-range", "DEG", angle, None,
     "search this far round the in-plane angles of the file, in degrees (default: all angles)"),
    ("angle_sigma", "--sigma-psi", "DEG", angle, None,
     "for filaments: in-plane angles are those of the file or tube (rlnAnglePsiPrior), or half a turn from "
     "these, give or take this standard deviation in degrees"),
    ("helical_rise", "--helical-rise", "A", positive, None,
     "with --sigma-psi: shift along filaments by half of this at most, in Angstrom"),
    ("mirror", "--mirror", None, bool, False,
     "let mirror images share classes: the same view from opposite sides"),
]  # fmt: skip
SHAPE = [
    ("topology", "--topology", None, tuple(TOPOLOGIES), "grid",
     "shape of the manifold; closed ones for motions and views that come round"),
    ("n_components", "--latent-dim", "L", (1, 2, 3), None,
     "dimension of the manifold (default: that of its shape, 2 for a grid)"),
]  # fmt: skip
CLUSTERING = [
    ("n_clusters", "--classes", "N", count_or_grid, 100,
     "number of classes, rounded to a regular grid, or the grid itself: 10x10"),
    ("n_basis", "--basis", "N", count_or_auto, "auto", "basis functions of the manifold: fewer are smoother"),
    ("max_iter", "--iterations", "N", count, None, "iterations, at most (default: the clusterer's)"),
    ("cache_folder", "--cache-folder", "DIR", Path, None,
     "keep prepared images of large sets in files here, which further runs read again; their size is "
     "stated before, and they stay until they are deleted"),
]  # fmt: skip
SUBCLASSES = [
    ("images_per_subclass", "--images-per-subclass", "N", count, 30,
     "a class gets a sub-class for every so many particles"),
    ("min_class_size", "--min-class-size", "N", count, None,
     "smaller classes stay whole (default: twice --images-per-subclass)"),
    ("max_subclasses", "--max-subclasses", "N", count, None, "sub-classes of a class, at most"),
]  # fmt: skip
MACHINE = [
    ("n_jobs", "--jobs", "N", count, None, "cores to use; results do not depend on it (default: all)"),
    ("random_state", "--seed", "N", whole, 0, "seed of every random choice"),
]  # fmt: skip
_FILES = {"images_dir": "--images-dir", "overwrite": "--force", "passthrough": "--passthrough"}


def flags(*tables):
    """Flag by the parameter that it sets."""
    return {parameter: flag for table in tables for parameter, flag, *_ in table}


# Options of parameters that messages of the library name: of any function, and of one estimator.
OPTIONS_OF_PARAMETERS = {
    **flags(READING, ALIGNMENT_AND_CLUSTERING, MACHINE),
    **_FILES,
    **{name: flags(ALIGNMENT, CLUSTERING)[name] for name in ("max_shift", "n_basis", "cache_folder")},
    "topology": "--topology",
    "micrograph_pixel_size": "--micrograph-pixel-size",
}
OPTIONS_OF_ESTIMATORS = {
    "DeepClusterer": {**flags(SUBCLASSES), "max_iter": "--iterations"},  # that of its second estimator
    "MAPAligner": flags(ALIGNMENT),
    "SMLClusterer": flags(CLUSTERING, SHAPE),
}


def parameters_from(options, *tables):
    """Parameters that the options of some tables set; those that nobody gave keep their defaults."""
    given = {name: getattr(options, flag[2:].replace("-", "_")) for name, flag in flags(*tables).items()}
    return {name: value for name, value in given.items() if value is not None}


# ---------------------------------------------------------------- parsers
def new_command(commands, name, run, *, summary=None, description=None, epilog=None):
    """Add a sub-command, whose help is the docstring of what it runs; return its parser."""
    first, *rest = (inspect.getdoc(run) or name).split("\n\n")
    summary = summary or first[0].lower() + first.rstrip(".")[1:]
    description = description or (rest[0] if rest else first)
    epilog = epilog or "\n\n".join(rest[1:])
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def add_talking(parser):
    """Add the options about what is said; every command has them."""
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="say only warnings and errors")
    group.add_argument(
        "-v", "--verbose", action="count", default=0,
        help="say more; -vv says most (default: results and progress)",
    )  # fmt: skip
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_run(parser, *required, output=None):
    """Add --output, --force and --config to a command that fills a folder.

    Parameters
    ----------
    parser : ArgumentParser
        Of the command.
    *required : str
        Names of what has to be given, on the command line or in the file of --config.
    output : Path or None
        Default of --output.
    """
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=output,
        help="folder for the results; made if it is not there"
        + (" (required)" if output is None else f" {SHOW_DEFAULT}"),
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace results that are already in DIR")
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help=f"take options from a YAML file, such as the {RUN_FILE} of a run; command-line options override "
        "the file",
    )  # fmt: skip
    parser.set_defaults(required=required)


def add_output(parser, metavar, text, *, required=True):
    """Add --output and --force to a command that writes a file, or a few."""
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=required, help=text)
    add_options(parser, [FORCE])


def add_files(parser):
    """Add --images-dir and --passthrough: files beside that of the particles."""
    add_options(parser, [IMAGES_DIR])
    parser.add_argument(
        "--passthrough", metavar="FILE", type=Path, action="append", default=[],
        help="another .cs file of the same job, with fields that the input lacks; may be given several times",
    )  # fmt: skip


def available_cores():
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def add_options(group, *tables):
    """Add the options of some tables."""
    for *_, flag, metavar, kind, default, text in (row for table in tables for row in table):
        shown = {"help": text if default is None else f"{text} {SHOW_DEFAULT}", "default": default}
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
        elif isinstance(kind, tuple):
            group.add_argument(flag, metavar=metavar, type=type(kind[0]), choices=kind, **shown)
        else:
            group.add_argument(flag, metavar=metavar, type=kind, **shown)


def add_machine(parser):
    """Add --jobs and --seed."""
    add_options(parser, MACHINE)
    parser.set_defaults(jobs=available_cores())


def add_particles(parser, *required, reading=READING):
    """Add PARTICLES, how they are read, and the options of a run, which needs what is `required`."""
    parser.add_argument(
        "particles", metavar="PARTICLES", type=Path, nargs="?", help="a .star, .cs or .mrcs file (required)"
    )
    add_run(parser, *required, "particles", "output")
    group = parser.add_argument_group("reading")
    add_files(group)
    add_options(group, reading)


def add_classification(parser, *, is_deep=False):
    """Add the options of alignment and clustering; `deep` chooses the number of its first classes itself."""
    add_options(parser.add_argument_group("alignment and clustering"), ALIGNMENT_AND_CLUSTERING)
    alignment, clustering = ALIGNMENT, CLUSTERING
    if is_deep:
        alignment, clustering = _with_chosen_classes(ALIGNMENT), _with_chosen_classes(CLUSTERING)
    add_options(parser.add_argument_group("alignment"), alignment, [
        ("--skip-align", None, bool, False, "use the in-plane angles and shifts of the file as they are"),
    ])  # fmt: skip
    add_options(parser.add_argument_group("clustering"), SHAPE, clustering, [
        ("--noise-groups", None, bool, False,
         "a noise spectrum for each micrograph, instead of one for all particles"),
    ])  # fmt: skip


def _with_chosen_classes(table):
    """The same options, with a number of classes that follows from the number of particles."""
    return [
        (name, flag, metavar, kind, None, f"{text} (default: from the number of particles, see below)")
        if name == "n_clusters" else (name, flag, metavar, kind, default, text)
        for name, flag, metavar, kind, default, text in table
    ]  # fmt: skip
