"""Options that several commands share, and the types that check their values."""

import argparse
import os
from pathlib import Path


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows each default once, and none where there is none to show."""

    def _get_help_string(self, action):
        hidden = action.default in (None, []) or isinstance(action.default, bool) or "default" in action.help
        return action.help if hidden else super()._get_help_string(action)


def new_command(commands, name, run, *, summary, description, epilog=None):
    """Add a sub-command; return its parser."""
    parser = commands.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def add_talking(parser):
    """Add the options about what is said; every command has them, last in its help."""
    talk = parser.add_argument_group("talking")
    talk.add_argument("-q", "--quiet", action="store_true", help="say only warnings and errors")
    talk.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more; -vv says most (default: results and progress)",
    )
    talk.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_output(parser, *, default=None):
    """Add -o/--output and --force."""
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=default is None, default=default,
        help="folder for the results; made if it is not there",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace results that are already in DIR")


def add_passthrough(parser):
    """Add --passthrough."""
    parser.add_argument(
        "--passthrough", metavar="FILE", type=Path, action="append", default=[],
        help="another .cs file of the same job, with fields that the input lacks; may be given several times",
    )  # fmt: skip


def add_machine(parser):
    """Add --jobs and --seed."""
    parser.add_argument(
        "--jobs", metavar="N", type=count, default=available_cores(),
        help="cores to use; labels do not depend on it (default: all that this process may use)",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="seed of every random choice")


def available_cores():
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


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
