"""Reference-free 2-D alignment and deep clustering of cryo-EM particle images.

exit codes:
  0    done
  1    the data or the machine stood in the way; the last line says how to go on
  2    the command line is wrong
  130  interrupted with Ctrl-C
  143  terminated

Lengths and resolutions are in Angstrom unless a line says pixels. Start with: sklearn-cryoem demo
Completion with the tab key (pip install argcomplete): eval "$(register-python-argcomplete sklearn-cryoem)"
"""

# The text above is what --help says. Below, a command is parsed and run, and failure becomes one line.

import argparse
import difflib
import os
import signal
import sys
import traceback
from contextlib import contextmanager, suppress

from sklearn_cryoem._core.validation import OutOfMemoryError, WorkerLostError
from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli import (
    assign,
    choose,
    classify,
    clean,
    compare,
    convert,
    inspect,
    report,
    select,
    simulate,
    watch,
)
from sklearn_cryoem.cli.console import CommandError, Console, Interrupted, reporting, with_options
from sklearn_cryoem.cli.options import add_talking

COMMANDS = (
    simulate.add_demo, classify.add_classify, classify.add_deep, choose.add_choose, clean.add_clean,
    assign.add_assign, watch.add_watch, report.add_report, select.add_select, select.add_learn_selection,
    compare.add_merge, compare.add_compare, convert.add_initial_model, convert.add_convert, inspect.add_info,
    simulate.add_simulate,
)  # fmt: skip

_ARGUMENTS = {"model": "RUN", "particles": "PARTICLES"}
_GRIDS = ("classes", "basis")  # options that take a grid such as 10x10, a list in a file
_REMEDIES = {
    FileNotFoundError: "Check the path.",
    FileExistsError: "Choose another name.",
    IsADirectoryError: "Name a file in it.",
    NotADirectoryError: "Name a folder.",
}
OK, FAILED, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143  # argparse exits with 2, too


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message):
        """End with the message, without the usage, which would hide it."""
        end = "" if message.endswith((".", "?")) else "."
        self.exit(WRONG, f"error: {message}{end} See {self.prog} --help.\n")


def build_parser():
    """The parser of the whole command line; `commands` are those of its commands by name."""
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog="sklearn-cryoem",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sklearn-cryoem {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    for command in commands.choices.values():
        add_talking(command)  # last in its help
    parser.commands = commands.choices
    return parser


def parse(argv):
    """Options of a command line; those of a --config file stand before the others, which override them.

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
    parser = build_parser()
    commands = parser.commands
    complete(parser)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    check_words(argv, parser)
    options = parser.parse_args(argv)
    if getattr(options, "config", None) is not None:
        command = commands[options.command]
        words = words_of_config(options, command)
        # so that a list that is last in the file takes no word of the command line
        end = f"--config={options.config}"
        options = parser.parse_args([options.command, *words, end, *argv[1:]])
    missing = [name for name in getattr(options, "required", ()) if getattr(options, name) is None]
    if missing:
        names = {**_ARGUMENTS, "output": "-o/--output"}
        lacking = ", ".join(names[name] for name in missing)
        commands[options.command].error(f"the following arguments are required: {lacking}")
    return options


def check_words(argv, parser):
    """Help where nothing is given that has to be; of a mistyped command or option, what may be meant."""
    command = parser.commands.get(argv[0]) if argv else parser
    if command is None:
        if not argv[0].startswith("-"):
            parser.error(f"there is no command {argv[0]}{_meant(argv[0], parser.commands)}")
        return
    needs = any(action.required for action in command._actions) or command.get_default("required")
    if len(argv) < 2 and needs:
        command.print_help()
        command.exit(WRONG)
    flags = command._option_string_actions
    for word in argv[1 : argv.index("--") if "--" in argv else None]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and not any(name.startswith(flag) for name in flags):
            command.error(f"there is no option {flag}{_meant(flag.replace('_', '-'), flags)}")


def _meant(word, known):
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


# ---------------------------------------------------------------- the file of --config
def words_of_config(options, command):
    """Options of the file of --config, as they would stand on the command line.

    Parameters
    ----------
    options : argparse.Namespace
        Those of the command line.
    command : ArgumentParser
        Of the command; an argument that the file has becomes its default.

    Returns
    -------
    list of str

    Raises
    ------
    CommandError
        If the file cannot be read, or holds something that is no option of the command.
    """
    path, name = options.config, options.command
    content = _load(path)
    wanted = content.pop("command", name)
    if wanted != name:
        raise CommandError(
            f"{path} is for the command {wanted}, not {name}. Use sklearn-cryoem {wanted} --config {path}."
        )
    known = [key for key in vars(options) if key not in ("run", "required", "config", "debug", "command")]
    words = []
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option not in known:
            hint = _meant(option, known) or "."
            raise CommandError(f"{path}: {key!r} is no option of {name}{hint} See {name} --help.")
        if option in _ARGUMENTS and option in options.required:
            command.set_defaults(**{option: value})
        elif value is not None and not (option == "passthrough" and options.passthrough):
            words += words_of(option, value, getattr(options, option), path)
    return words


def words_of(option, value, usual, path):
    """An option of a file as it would stand on the command line."""
    flag = f"--{option.replace('_', '-')}"
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise CommandError(f"{path}: {option} is {value!r}, expected true or false. Correct it.")
        return [flag] if value else []
    if isinstance(value, dict):
        raise CommandError(f"{path}: {option} is {value!r}, expected a value or a list. Correct it.")
    if isinstance(value, list) and option in _GRIDS and not isinstance(usual, list):
        value = "x".join(map(str, value))
    if isinstance(value, list):
        if usual == []:  # may be given several times
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


# ---------------------------------------------------------------- run
def complete(parser):
    """Answer a shell that asks what could come next, where argcomplete is installed."""
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            import argcomplete

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
        if asked:  # during an import, which turned it into another error
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
        return with_options(str(error), options)
    if isinstance(error, MemoryError):
        return f"out of memory ({error}). Use fewer --jobs, a smaller --downsample box, or a larger machine."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(type(error), "Check the path, its permissions and the space on the disk.")
        return f"{where}{error.strerror}. {remedy}"
    if isinstance(error, CommandError | ValueError | TypeError | OSError | ImportError) and str(error):
        return with_options(str(error), options)
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of sklearn-cryoem; "
        f"run again with --debug and report the traceback."
    )
