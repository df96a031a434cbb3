"""What the command line says, and where: the only module that prints."""

import logging
import re
import sys
import warnings
from contextlib import contextmanager

from sklearn_cryoem.cli.options import OPTIONS_OF_ESTIMATORS, OPTIONS_OF_PARAMETERS

_PROGRESS_LOGGER = "sklearn_cryoem"  # progress lines come under the package's own name, the rest below it


class CommandError(Exception):
    """A user's mistake or a missing means; its text is the whole message, with the remedy in it."""


class Interrupted(CommandError):
    """Ctrl-C ended a run that can go on; its text says how."""


def with_options(text, options=None):
    """A message of the library on one line, its parameters called by the options that set them.

    Parameters
    ----------
    text : str
        A message of an error or a warning.
    options : argparse.Namespace or None
        Those of the command that shows it; an option that it lacks is called one of `classify`.

    Returns
    -------
    str
    """
    text = " ".join(text.split())
    known = dict(OPTIONS_OF_PARAMETERS)
    for estimator, own in OPTIONS_OF_ESTIMATORS.items():
        known |= own if estimator in text else {}

    def option(match):
        name, value = match[1], text[match.end() : match.end() + 1]
        if match[0] == name and "_" not in name:  # a word of English, too
            return name
        lacks = options is not None and not hasattr(options, known[name][2:].replace("-", "_"))
        space = " " if match[2] == "=" and (value.isalnum() or value in ("'", "(")) else ""
        return known[name] + (" (of classify)" if lacks else "") + space

    # not in a call, such as ParticleStack(pixel_size=...), which is for Python
    return re.sub(rf"(?<!\w\()'?\b({'|'.join(known)})\b'?(=True|=False|=)?", option, text)


def _notice_of(text):
    """The name in brackets that a warning about particles ends with; empty without one."""
    match = re.search(r"\[([a-z-]+)\]$", text)
    return match[1] if match else ""


def _put(text, stream):
    """Print a line, with escapes for what the encoding of the stream lacks: names of files hold anything."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class Console:
    """Speaks to the person at the terminal: results on stdout, warnings and errors on stderr.

    Parameters
    ----------
    quiet : bool
        Say only warnings and errors.
    options : argparse.Namespace or None
        Of the command that runs; they are named beside messages of the library.
    """

    def __init__(self, *, quiet=False, options=None):
        self.quiet, self.options = quiet, options
        self.warnings = []  # every warning of the run, for its summary
        self._shown = set()  # names of those that have one, texts of the others

    def say(self, text=""):
        """Print a line for people, unless quiet."""
        if not self.quiet:
            _put(text, sys.stdout)

    def table(self, rows):
        """Print (name, value) rows in two columns, unless quiet."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.say(f"  {name:<{width}}  {value}")

    def data(self, text):
        """Print what was asked for, quiet or not."""
        _put(text, sys.stdout)

    def warn(self, text):
        """Print a warning and keep it, unless one of the same name was shown before.

        What is seen while particles are read is seen again when they are looked at, and by the estimators.
        """
        key = _notice_of(text) or text
        if key not in self._shown:
            self._shown.add(key)
            self.warnings.append(text)
            _put(f"warning: {text}", sys.stderr)

    @property
    def notices(self):
        """Names of the warnings about particles that were shown, in order."""
        return [name for name in map(_notice_of, self.warnings) if name]

    def error(self, text):
        """Print an error."""
        _put(f"error: {text}", sys.stderr)


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
    handler = logging.StreamHandler()  # on stderr, which shows any name of a file
    handler.addFilter(lambda record: verbosity > 0 or record.name == _PROGRESS_LOGGER or record.levelno > 20)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if console.quiet else logging.DEBUG if verbosity > 1 else logging.INFO)
    logger.propagate = False

    def show(message, category, filename, lineno, file=None, line=None):
        console.warn(with_options(str(message), console.options))

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
