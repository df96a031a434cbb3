"""What every command shares: help, exit codes, one-line errors, quiet, warnings."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from sklearn_cryoem.cli import inspect
from sklearn_cryoem.cli import main as main_module
from sklearn_cryoem.cli.console import CommandError, Console, reporting
from sklearn_cryoem.cli.main import build_parser, explain, main

COMMAND_NAMES = list(build_parser().commands)


def failing_with(error):
    def run(options, console):
        raise error

    return run


@pytest.fixture
def info_that(monkeypatch):
    """Replace what `info` does; returns a function that takes the replacement."""
    return lambda run: monkeypatch.setattr(inspect, "info", run)


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_names_units_and_defaults(name, capsys):
    with pytest.raises(SystemExit) as done:
        main(["help", name] if name == "info" else [name, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert "--quiet" in text and "--debug" in text
    if name != "info":
        assert "--force" in text
    if name not in (
        "demo",
        "info",
        "report",
        "select",
        "merge",
        "compare",
        "learn-selection",
    ):  # these take no length
        assert "Angstrom" in " ".join(text.split()).replace(" A,", " Angstrom")


def test_the_main_help_lists_commands_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in COMMAND_NAMES)
    assert "exit codes" in text and "130" in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fly"], "there is no command fly. See sklearn-cryoem --help"),
        (["classi", "x.star"], "there is no command classi; did you mean classify? See"),
        (
            ["classify", "x.star", "--mask_diametr=180"],
            "no option --mask_diametr; did you mean --mask-diameter?",
        ),
        (["merge", "--outptu", "x.star", "a", "b"], "no option --outptu; did you mean --output?"),
        (["classify", "x.star"], "-o/--output"),
        (["classify", "x.star", "-o", "out", "--classes", "0"], "'0' is not a whole number from 1"),
        (["classify", "x.star", "-o", "out", "--classes", "10x"], "'10x' is not a whole number from 1"),
        (["classify", "x.star", "-o", "out", "--mask-diameter", "nan"], "'nan' is not a number above 0"),
        (["classify", "x.star", "-o", "out", "--latent-dim", "4"], "invalid choice: 4"),
        (["simulate", "-o", "out", "--junk", "1"], "'1' is not a number from 0 to below 1"),
        (["simulate", "-o", "out", "--phantom", "teapot"], "invalid choice: 'teapot'"),
        (["demo", "--seed", "-1"], "'-1' is not a whole number from 0"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_wrong(words, complaint, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("error: ") and error.count("\n") == 1  # and no usage


@pytest.mark.parametrize("words", [[], ["classify"], ["select"]])
def test_without_arguments_the_help_is_shown(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    assert done.value.code == 2 and out.startswith("usage: sklearn-cryoem") and err == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("classify {} -o out", "is a folder. Name a file of particles, such as {}/here.star."),
        ("clean {} -o out", "is a folder. Name a file of particles, such as"),
        ("convert {} x.cs", "is a folder. Name a file of particles, such as"),
        ("assign nowhere {}/here.star -o out", "there is no nowhere. Give the folder of a run."),
        ("assign {0} {0}/here.star -o out", "{} holds no model.npz. Give the folder of a run."),
        ("simulate -o out --volume {}", "{} is a folder. Give the path of an .mrc map."),
        ("select {}/here.star --selection {} -o x.star", "is a folder, expected a file. Name a file in it."),
    ],
)
def test_a_folder_in_place_of_a_file_is_named(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "here.star").write_text("data_\n\nloop_\n_rlnImageName\n_rlnClassNumber\n1@x.mrcs 1\n")
    assert main(words.replace("{0}", "{}").replace("{}", str(folder)).split()) == 1
    out, err = capsys.readouterr()
    assert complaint.replace("{}", str(folder)) in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(("text", "value"), [("100", 100), ("10x12", (10, 12)), ("4X3x2", (4, 3, 2))])
def test_classes_are_a_number_or_a_grid(text, value):
    assert build_parser().parse_args(["classify", "x", "-o", "y", "--classes", text]).classes == value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("there is no x. Check the path."), "error: there is no x. Check the path.\n"),
        (ValueError("found 3,\n  expected 4. Do this."), "error: found 3, expected 4. Do this.\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied. Check the path"),
        (MemoryError("12 GB"), "error: out of memory (12 GB). Use fewer --jobs"),
        (KeyError("rot"), "error: unexpected KeyError: 'rot'. This is a fault of sklearn-cryoem"),
    ],
)
def test_errors_are_one_line_on_stderr(error, line, info_that, capsys):
    info_that(failing_with(error))
    assert main(["info", "x"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_debug_adds_the_traceback(info_that, capsys):
    info_that(failing_with(KeyError("rot")))
    assert main(["info", "x", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interruption_has_its_own_exit_code(info_that, capsys):
    info_that(failing_with(KeyboardInterrupt()))
    assert main(["info", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_quiet_hides_talk_but_neither_data_nor_warnings(capsys):
    console = Console(quiet=True)
    console.say("hello")
    console.table([("a", 1)])
    console.data("{}")
    console.warn("odd")
    out, err = capsys.readouterr()
    assert out == "{}\n" and err == "warning: odd\n"
    assert console.warnings == ["odd"]


def test_warnings_become_lines_and_are_kept(capsys):
    console = Console()
    with reporting(console):
        warnings.warn("defocus looks wrong", UserWarning, stacklevel=1)
        warnings.warn("old numpy", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: defocus looks wrong\n"
    assert console.warnings == ["defocus looks wrong"]


@pytest.mark.parametrize(
    ("quiet", "verbosity", "shown"),
    [
        (False, 0, ["progress"]),
        (False, 1, ["progress", "memory"]),
        (False, 2, ["progress", "memory", "detail"]),
        (True, 0, []),
    ],
)
def test_log_lines_follow_the_verbosity(quiet, verbosity, shown, capsys):
    package, module = logging.getLogger("sklearn_cryoem"), logging.getLogger("sklearn_cryoem.manifold.em")
    with reporting(Console(quiet=quiet), verbosity=verbosity):
        package.info("progress")
        module.info("memory")
        module.debug("detail")
    assert capsys.readouterr().err.split() == shown
    assert package.handlers == [] and package.propagate


def test_errors_call_parameters_by_their_options():
    error = ValueError("x.star: not found. Pass images_dir=, or permissive=True. It exists: overwrite=True.")
    assert explain(error) == "x.star: not found. Pass --images-dir, or --permissive. It exists: --force."


def test_the_last_resort_asks_for_a_report():
    assert "--debug and report" in explain(AttributeError("x"))


def test_help_is_quick_to_import_and_the_module_runs():
    code = (
        "import sys; from sklearn_cryoem.cli.main import build_parser; build_parser();"
        "heavy = {'pandas', 'finufft', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "sklearn_cryoem.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sklearn-cryoem ")
    assert main_module.OK == 0


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="no SIGTERM on this system")
def test_a_request_to_end_stays_one_whatever_becomes_of_it_on_its_way(monkeypatch, tmp_path, capsys):
    def run(options, console):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except SystemExit as error:
            raise ImportError("numpy is only half there") from error

    monkeypatch.setattr("sklearn_cryoem.cli.report.report", run)
    assert main(["report", str(tmp_path)]) == 143
    assert "terminated. Files already written are whole" in capsys.readouterr().err
