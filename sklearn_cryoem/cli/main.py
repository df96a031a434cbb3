"""Entry point of `sklearn-cryoem`: parse, run a command, turn failure into one line and an exit code."""

import argparse
import os
import signal
import sys
import traceback
from contextlib import contextmanager

from sklearn_cryoem._core.exceptions import OutOfMemoryError, WorkerLostError
from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli import classify, convert, deep, demo, info, report, select, simulate
from sklearn_cryoem.cli._arguments import add_talking
from sklearn_cryoem.cli._config import configured
from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.console import CommandError, Console, Interrupted, reporting

COMMANDS = (demo, classify, deep, report, select, convert, info, simulate)

OK, FAILED, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143  # argparse exits with 2, too

_EPILOG = """\
exit codes:
  0    done
  1    the data or the machine stood in the way; the last line says how to go on
  2    the command line is wrong
  130  interrupted with Ctrl-C
  143  terminated

Lengths and resolutions are in Angstrom unless a line says pixels. Start with: sklearn-cryoem demo
Completion with the tab key (pip install argcomplete): eval "$(register-python-argcomplete sklearn-cryoem)"
"""


def build_parser():
    """The parser of the whole command line."""
    return _parsers()[0]


def _parsers():
    """The parser of the whole command line, and those of its commands by name."""
    parser = argparse.ArgumentParser(
        prog="sklearn-cryoem",
        description="Reference-free 2-D alignment and deep clustering of cryo-EM particle images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sklearn-cryoem {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        add_talking(module.add_parser(commands))
    return parser, dict(commands.choices)


def parse(argv):
    """Options of a command line, with those of a --config file under them.

    Parameters
    ----------
    argv : list of str
        Arguments after the program's name.

    Returns
    -------
    argparse.Namespace

    Raises
    ------
    CommandError
        If the file of --config cannot be used.
    """
    parser, commands = _parsers()
    complete(parser)
    tokens, spare = configured(argv, commands)
    options, rest = parser.parse_known_args([*tokens, *spare])
    if rest and rest != spare:
        commands[argv[0]].error(f"unrecognized arguments: {' '.join(rest[: len(rest) - len(spare)] or rest)}")
    return options


def complete(parser):
    """Answer a shell that asks what could come next, where argcomplete is installed."""
    if "_ARGCOMPLETE" in os.environ:
        try:
            import argcomplete
        except ImportError:
            return
        argcomplete.autocomplete(parser)


class Terminated(SystemExit):
    """The process was asked to end: no fit makes use of what it has learnt, as it does after Ctrl-C."""


@contextmanager
def ending_on_request():
    """Within the block, SIGTERM ends the run at once; states of fits that were kept stay."""
    asked = []

    def end(number, frame):
        asked.append(number)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    except Exception as error:
        if asked:  # amid an import, which made another error of it
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 failed, 2 wrong --config file, 130 interrupted, 143 terminated. A wrong
        command line exits with 2 (SystemExit).
    """
    try:
        options = parse(sys.argv[1:] if argv is None else list(argv))
    except CommandError as error:
        Console().error(str(error))
        return WRONG
    console = Console(quiet=options.quiet, options=options)
    try:
        with ending_on_request(), reporting(console, verbosity=options.verbose):
            options.run(options, console)
    except Terminated:
        console.error("terminated. Files already written are whole; without summary.json no run is complete.")
        return TERMINATED
    except KeyboardInterrupt:
        console.error(
            "interrupted. Files already written are whole; a run without summary.json is not complete."
        )
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone: nobody is left to tell
        return FAILED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        console.error(explain(error, options))
        return INTERRUPTED if isinstance(error, Interrupted) else FAILED
    return OK


def explain(error, options=None):
    """One line for the person at the terminal: what happened and what to do."""
    if isinstance(error, OutOfMemoryError | WorkerLostError):
        return in_the_shell(str(error), options)
    if isinstance(error, MemoryError):
        return f"out of memory ({error}). Use fewer --jobs, a smaller --downsample box, or a larger machine."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Check the path, its permissions and the space on the disk."
    if isinstance(error, CommandError | ValueError | TypeError | OSError | ImportError) and str(error):
        return in_the_shell(str(error), options)
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of sklearn-cryoem; "
        f"run again with --debug and report the traceback."
    )
