"""Entry point of `sklearn-cryoem`: parse, run a command, turn failure into one line and an exit code."""

import argparse
import sys
import traceback

from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli import classify, convert, deep, demo, info, report, select, simulate
from sklearn_cryoem.cli._arguments import add_talking
from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.console import CommandError, Console, reporting

COMMANDS = (demo, classify, deep, report, select, convert, info, simulate)

OK, FAILED, INTERRUPTED = 0, 1, 130  # argparse itself exits with 2 when the command line is wrong

_EPILOG = """\
exit codes:
  0    done
  1    the data or the machine stood in the way; the last line says how to go on
  2    the command line is wrong
  130  interrupted with Ctrl-C

Lengths and resolutions are in Angstrom unless a line says pixels. Start with: sklearn-cryoem demo
"""


def build_parser():
    """The parser of the whole command line."""
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
    return parser


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 failed, 130 interrupted. A wrong command line exits with 2 (SystemExit).
    """
    options = build_parser().parse_args(argv)
    console = Console(quiet=options.quiet)
    try:
        with reporting(console, verbosity=options.verbose):
            options.run(options, console)
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
        console.error(explain(error))
        return FAILED
    return OK


def explain(error):
    """One line for the person at the terminal: what happened and what to do."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error}). Use fewer --jobs, a smaller --downsample box, or a larger machine."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Check the path, its permissions and the space on the disk."
    if isinstance(error, CommandError | ValueError | TypeError | OSError | ImportError) and str(error):
        return in_the_shell(str(error))
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of sklearn-cryoem; "
        f"run again with --debug and report the traceback."
    )
