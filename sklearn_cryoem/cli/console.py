"""What the command line says, and where: the only module that prints."""

import logging
import sys
import warnings
from contextlib import contextmanager

from sklearn_cryoem.cli._wording import in_the_shell

_PROGRESS_LOGGER = "sklearn_cryoem"  # progress lines come under the package's own name, the rest below it


class CommandError(Exception):
    """A user's mistake or a missing means; its text is the whole message, with the remedy in it."""


class Console:
    """Speaks to the person at the terminal: results on stdout, warnings and errors on stderr.

    Parameters
    ----------
    quiet : bool
        Say only warnings and errors.
    """

    def __init__(self, *, quiet=False):
        self.quiet = quiet
        self.warnings = []  # every warning of the run, for its summary

    def say(self, text=""):
        """Print a line for people, unless quiet."""
        if not self.quiet:
            print(text, flush=True)

    def table(self, rows, *, indent=2):
        """Print (name, value) rows in two columns, unless quiet."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.say(f"{' ' * indent}{name:<{width}}  {value}")

    def data(self, text):
        """Print what was asked for, quiet or not."""
        print(text, flush=True)

    def warn(self, text):
        """Print a warning and keep it."""
        self.warnings.append(text)
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def error(self, text):
        """Print an error."""
        print(f"error: {text}", file=sys.stderr, flush=True)


class _LineHandler(logging.Handler):
    """Log records as plain lines on stderr, past any progress bar."""

    def emit(self, record):
        print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def reporting(console, *, verbosity=0):
    """Within the block, warnings go through `console` and log lines to stderr.

    Parameters
    ----------
    console : Console
        Who speaks.
    verbosity : int
        0: progress lines only (where there is no progress bar); 1: what is done and needed; 2: details.
    """
    logger = logging.getLogger(_PROGRESS_LOGGER)
    handler = _LineHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: verbosity > 0 or record.name == _PROGRESS_LOGGER or record.levelno > 20)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if console.quiet else logging.DEBUG if verbosity > 1 else logging.INFO)
    logger.propagate = False

    def show(message, category, filename, lineno, file=None, line=None):
        console.warn(in_the_shell(str(message)))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            for noise in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning):
                warnings.simplefilter("ignore", noise)
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
