"""Parameters of a run in a YAML file: written beside its results, read with --config to repeat it."""

import argparse
import difflib
import json
from pathlib import Path

from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli.console import CommandError

RUN = "run.yaml"
_NOT_SAVED = ("output", "config")
_NOT_OPTIONS = ("help", "config", "debug")


def add_config(parser):
    """Add --config."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help=f"take options from a YAML file, such as the {RUN} of a run; those given here go before them",
    )  # fmt: skip


def run_text(command, options):
    """Text of a file that repeats a run.

    Parameters
    ----------
    command : str
        Name of the sub-command.
    options : dict
        Every option as it was used. Paths become absolute, so that the file works from any folder.

    Returns
    -------
    str
        YAML; values are written as JSON, which is YAML too.
    """
    lines = [
        f"# Written by sklearn-cryoem {__version__}. Repeat this run with",
        f"#   sklearn-cryoem {command} --config {RUN} -o DIR",
        f"command: {command}",
    ]
    for name, value in options.items():
        if name not in _NOT_SAVED:
            lines.append(f"{name}: {json.dumps(_plain(value), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _plain(value):
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def configured(argv, parsers):
    """Put the options of the file after --config before those of a command line.

    Parameters
    ----------
    argv : list of str
        Command and options as they were given.
    parsers : dict of ArgumentParser
        Parser of each command by its name.

    Returns
    -------
    tokens : list of str
        The command line with the options of the file in it.
    spare : list of str
        The command's argument by the file: to be used if none was given.

    Raises
    ------
    CommandError
        If the file cannot be read, or holds something that is no option of the command.
    """
    parser = parsers.get(argv[0]) if argv else None
    if parser is None or not any(action.dest == "config" for action in parser._actions):
        return argv, []
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = _config_of(finder, argv[1:])
    if path is None:
        return argv, []
    content = load_config(path)
    _check_command(content.pop("command", argv[0]), argv[0], path)
    actions = {action.dest: action for action in parser._actions if action.dest not in _NOT_OPTIONS}
    tokens, spare = [], []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise CommandError(f"{path}: {key!r} is no option of {argv[0]}{hint} See {argv[0]} --help.")
        if value is None:
            continue
        if not actions[name].option_strings:
            spare.append(str(value))
        elif isinstance(value, list) and not value:
            continue
        elif isinstance(actions[name].default, list) and _is_given(actions[name], argv):
            continue  # it would be added to those of the file, not go before them
        else:
            tokens += _tokens(actions[name], value, path)
    return [argv[0], *tokens, *argv[1:]], spare


def _config_of(finder, tokens):
    try:
        return finder.parse_known_args(tokens)[0].config
    except SystemExit:  # --config without a file: the parser of the command says so better
        return None


def load_config(path):
    """Content of a YAML file: a value for each key.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
    """
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


def _is_given(action, argv):
    return any(token.partition("=")[0] in action.option_strings for token in argv)


def _check_command(wanted, given, path):
    if wanted != given:
        raise CommandError(
            f"{path} is for the command {wanted}, not {given}. Use sklearn-cryoem {wanted} --config {path}."
        )


def _tokens(action, value, path):
    """An option of the file as it would stand on the command line."""
    option = action.option_strings[-1]
    if action.nargs == 0:
        if not isinstance(value, bool | int):
            raise CommandError(f"{path}: {action.dest} is {value!r}, expected true or false. Correct it.")
        return [option] * int(value)
    if isinstance(value, dict):
        raise CommandError(f"{path}: {action.dest} is {value!r}, expected a value or a list. Correct it.")
    if isinstance(value, list):
        if action.nargs is not None:
            return [option, *map(str, value)]
        if isinstance(action.default, list):  # may be given several times
            return [f"{option}={item}" for item in value]
        value = "x".join(map(str, value))  # a grid
    return [f"{option}={value}"]
