"""Options that several commands share, the types that check their values, and the file of --config."""

import argparse
import difflib
import os
from pathlib import Path

from sklearn_cryoem.cli.console import CommandError

RUN_FILE = "run.yaml"
_GRIDS = ("classes", "basis")  # options that take a grid such as 10x10, a list in a file
SHOW_DEFAULT = "(default: %(default)s)"


# ---------------------------------------------------------------- parsers
def new_command(commands, name, run, *, summary, description, epilog=None):
    """Add a sub-command; return its parser."""
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def add_talking(parser):
    """Add the options about what is said; every command has them, last in its help."""
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


def add_passthrough(parser):
    """Add --passthrough."""
    parser.add_argument(
        "--passthrough", metavar="FILE", type=Path, action="append", default=[],
        help="another .cs file of the same job, with fields that the input lacks; may be given several times",
    )  # fmt: skip


def add_images_dir(parser):
    """Add --images-dir."""
    parser.add_argument("--images-dir", metavar="DIR", type=Path, help="where the image stacks are, if moved")


def add_machine(parser):
    """Add --jobs and --seed."""
    parser.add_argument(
        "--jobs", metavar="N", type=count, default=available_cores(),
        help="cores to use; labels do not depend on it (default: all that this process may use)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="N", type=whole, default=0, help=f"seed of every random choice {SHOW_DEFAULT}"
    )


def available_cores():
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def add_options(group, rows):
    """Add options from rows of (flag, metavar, type, default, help); of type bool they are switches."""
    for flag, metavar, kind, default, text in rows:
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
        else:
            shown = text if default is None else f"{text} {SHOW_DEFAULT}"
            group.add_argument(flag, metavar=metavar, type=kind, default=default, help=shown)


def add_reading(group):
    """Add the options of how particles are read."""
    add_images_dir(group)
    add_passthrough(group)
    add_options(group, [
        ("--pixel-size", "A", positive, None, "Angstrom per pixel (default: what the file says)"),
        ("--rescale", None, bool, False, "bring particles of several pixel sizes and boxes to one"),
        ("--invert", None, bool, False, "invert the contrast: for dark particles"),
        ("--no-ctf", None, bool, False, "take the CTF as 1, even if the file has one"),
        ("--normalise", None, bool, False, "give each background mean 0 and standard deviation 1"),
        ("--clip-hot-pixels", None, bool, False, "replace pixels that are far off their neighbours"),
        ("--downsample", "PIXELS", count, None, "crop images in Fourier space to this box, in pixels"),
        ("--permissive", None, bool, False, "leave out particles that cannot be used, and say which"),
    ])  # fmt: skip


def add_classification(parser):
    """Add the options of alignment and clustering."""
    add_options(parser.add_argument_group("alignment and clustering"), [
        ("--mask-diameter", "A", positive, None,
         "diameter of the round mask, in Angstrom (default: chosen from the box)"),
        ("--max-resolution", "A", positive, None,
         "finest detail to use, in Angstrom (default: as fine as pixel size and signal allow)"),
        ("--noise-groups", None, bool, False,
         "a noise spectrum for each micrograph, instead of one for all particles, for the clustering"),
    ])  # fmt: skip
    add_options(parser.add_argument_group("alignment"), [
        ("--align-classes", "N", count, 50, "classes while aligning"),
        ("--align-references", "N", count, None,
         "references that are united to these classes in the end: more are more accurate and slower "
         "(default: 2.5 to a class, as far as there are particles)"),
        ("--align-batches", "N", whole, None, "mini-batches to begin with (default: the aligner's)"),
        ("--align-iterations", "N", count, None,
         "passes over all particles, at most (default: the aligner's)"),
        ("--max-shift", "A", positive, None,
         "particles are off centre by at most this, in Angstrom (default: chosen from the box)"),
        ("--angle-range", "DEG", angle, None,
         "search this far round the in-plane angles of the file, in degrees (default: all angles)"),
        ("--align-mirrored", None, bool, False,
         "let mirror images share classes: the same view from opposite sides"),
        ("--skip-align", None, bool, False, "use the in-plane angles and shifts of the file as they are"),
    ])  # fmt: skip
    cluster = parser.add_argument_group("clustering")
    cluster.add_argument(
        "--topology", choices=("grid", "ring", "torus", "sphere"), default="grid",
        help=f"shape of the manifold; closed ones for motions and views that come round {SHOW_DEFAULT}",
    )  # fmt: skip
    cluster.add_argument(
        "--latent-dim", metavar="L", type=count, choices=(1, 2, 3),
        help="dimension of the manifold (default: that of its shape, 2 for a grid)",
    )  # fmt: skip
    add_options(cluster, [
        ("--classes", "N", count_or_grid, 100,
         "number of classes, rounded to a regular grid, or the grid itself: 10x10"),
        ("--basis", "N", count_or_auto, "auto", "basis functions of the manifold: fewer are smoother"),
        ("--iterations", "N", count, None, "iterations, at most (default: the clusterer's)"),
        ("--cache-folder", "DIR", Path, None,
         "keep prepared images of large sets in files here, which further runs read again; their size is "
         "stated before, and they stay until they are deleted"),
    ])  # fmt: skip


# ---------------------------------------------------------------- types
def count(text):
    """A whole number from 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number from 1")


def whole(text):
    """A whole number from 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number from 0")


def positive(text):
    """A finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def not_negative(text):
    """A finite number from 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number from 0")


def fraction(text):
    """A number from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def angle(text):
    """A number of degrees from 0 to 180."""
    return _number(text, float, lambda value: 0 <= value <= 180, "a number of degrees from 0 to 180")


def _number(text, kind, is_allowed, expected):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


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


# ---------------------------------------------------------------- the file of --config
def find_config(command, tokens):
    """The file after --config among the words of a command line, or None."""
    if command.get_default("required") is None:  # it has no --config
        return None
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    try:
        return finder.parse_known_args(tokens)[0].config
    except SystemExit:  # --config without a file: the parser of the command says so better
        return None


def read_config(path, name, command):
    """Options of a YAML file, as the parser of the command converts and checks them.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Of the command.
    command : ArgumentParser
        Its parser.

    Returns
    -------
    dict
        Value by name, for `set_defaults` of the parser.

    Raises
    ------
    CommandError
        If the file cannot be read, or holds something that is no option of the command.
    """
    content = _load(path)
    wanted = content.pop("command", name)
    if wanted != name:
        raise CommandError(
            f"{path} is for the command {wanted}, not {name}. Use sklearn-cryoem {wanted} --config {path}."
        )
    usual = vars(command.parse_args([]))
    known = [key for key in usual if key not in ("run", "required", "config", "debug")]
    words, given = [], []
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise CommandError(f"{path}: {key!r} is no option of {name}{hint} See {name} --help.")
        if value is not None:
            is_argument = option == "particles" and option in usual["required"]
            words += [str(value)] if is_argument else _words(option, value, usual[option], path)
            given.append(option)
    parsed = command.parse_args(words)
    return {option: getattr(parsed, option) for option in given}


def _words(option, value, usual, path):
    """An option of the file as it would stand on the command line."""
    flag = f"--{option.replace('_', '-')}"
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise CommandError(f"{path}: {option} is {value!r}, expected true or false. Correct it.")
        return [flag] if value else []
    if isinstance(value, dict):
        raise CommandError(f"{path}: {option} is {value!r}, expected a value or a list. Correct it.")
    if isinstance(value, list) and option in _GRIDS:
        value = "x".join(map(str, value))
    if isinstance(value, list):
        if isinstance(usual, list):  # may be given several times
            return [f"{flag}={item}" for item in value]
        return [flag, *map(str, value)] if value else []
    return [f"{flag}={value}"]


def _load(path):
    """Content of a YAML file: a value for each key."""
    try:
        import yaml
    except ImportError:
        raise CommandError(
            "--config needs PyYAML, which is not there. Install it with: pip install 'sklearn-cryoem[cli]'"
        ) from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(
            f"{path} is no YAML file ({reason}). Write one option a line, such as classes: 100."
        ) from error
    if not isinstance(content, dict):
        raise CommandError(f"{path} holds no options. Write one a line, such as classes: 100.")
    return content
