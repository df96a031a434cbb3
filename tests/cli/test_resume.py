"""A run of the command line that was killed or interrupted: the same command goes on, same result."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, load_model
from sklearn_cryoem.cli import main as cli
from sklearn_cryoem.cli.run_folder import UNFINISHED
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import model_files
from sklearn_cryoem.io import write_particles
from sklearn_cryoem.manifold import fit

WORDS = [
    "--jobs",
    "1",
    "--align-classes",
    "3",
    "--align-batches",
    "2",
    "--align-iterations",
    "3",
    "--classes",
    "9",
    "--iterations",
    "8",
    "--quiet",
]
MORE = {"deep": ["--images-per-subclass", "20"]}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    path = tmp_path_factory.mktemp("particles") / "particles.star"
    write_particles(make_particles("ribosome", 120, box=16, snr=1.0, max_shift=15.0, random_state=0), path)
    return path


def run(command, star, folder):
    return cli.main([command, str(star), "-o", str(folder), *WORDS, *MORE.get(command, [])])


def classify(star, folder):
    return run("classify", star, folder)


@pytest.fixture(scope="module")
def whole(star, tmp_path_factory):
    """A function of a command: the folder of a run that nothing interrupted, and the seconds that it took."""

    @cache
    def of(command):
        folder, began = tmp_path_factory.mktemp("whole") / "out", time.monotonic()
        assert run(command, star, folder) == 0
        return folder, time.monotonic() - began

    return of


def interrupt(monkeypatch, module, name, after):
    calls, function = [], getattr(module, name)

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(module, name, interrupted)


def test_the_same_command_goes_on_where_the_clustering_was_interrupted(star, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt(patch, fit, "sweep", 2)
        assert classify(star, cut) == 130
    assert not (cut / "summary.json").exists()
    assert len(list((cut / UNFINISHED).glob("smlclusterer-*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.delattr(MAPAligner, "fit")  # the alignment was done and is not done again
        assert classify(star, cut) == 0
    assert not (cut / UNFINISHED).exists()
    found, expected = contents(cut), contents(whole("classify")[0])
    for name in ("class_averages.mrcs", "particles.star", "quality.csv"):
        assert found[name] == expected[name], name
    assert load_model(cut / "model.npz")[-1].checkpoint is None


def test_ctrl_c_during_the_alignment_says_how_to_go_on(star, tmp_path, monkeypatch, capsys):
    from sklearn_cryoem.alignment import em

    with monkeypatch.context() as patch:
        interrupt(patch, em, "run_pass", 3)
        assert classify(star, tmp_path / "out") == 130
    said = capsys.readouterr().err
    assert "The same command goes on from here" in said
    assert "still changed" not in said  # it was not stopped by --align-iterations
    assert len(list((tmp_path / "out" / UNFINISHED).glob("mapaligner-*.npz"))) == 1
    assert classify(star, tmp_path / "out") == 0


def test_a_run_that_fails_before_its_first_state_leaves_no_folder(star, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise ValueError("nothing works")

    monkeypatch.setattr(MAPAligner, "fit", fails)
    assert classify(star, tmp_path / "out") != 0
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- killed
SCRIPT = """
import sys
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.estimators import model_files
model_files.SECONDS_BETWEEN = 0.0
print("ready", flush=True)
sys.exit(main(sys.argv[1:]))
"""


def start(command, star, folder):
    """Start the command in a process of its own; returns when it has begun."""
    words = [command, star, "-o", folder, *WORDS, *MORE.get(command, [])]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "Agg"},
    )
    assert process.stdout.readline().strip() == "ready"
    return process


def finish(process):
    """Exit code and what was said on the error stream."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def contents(folder):
    """What a run has written, without dates and times."""
    found = {}
    for path in folder.iterdir():
        if path.suffix == ".mrcs":
            found[path.name] = path.read_bytes()[1024:]
        elif path.suffix == ".npz":
            with np.load(path) as archive:
                found[path.name] = {
                    name: archive[name].tobytes() for name in archive.files if name != "header"
                }
                found["model"] = json.loads(str(archive["header"]))["model"]
        elif path.name == "summary.json":
            summary = json.loads(path.read_text())
            found[path.name] = {key: summary[key] for key in ("results", "warnings", "files")}
        elif path.name == "suggested.json":
            found[path.name] = json.loads(path.read_text())["classes"]
        elif path.name not in ("run.yaml", ".running"):  # one names the folder, the other the process
            lines = path.read_bytes().replace(bytes(folder.resolve()), b"").splitlines()
            found[path.name] = [line for line in lines if b"created" not in line.lower()]
    return found


@pytest.mark.parametrize("command", ["classify", "deep"])
def test_a_command_killed_at_a_random_moment_ends_with_the_same_files(command, star, whole, tmp_path):
    (folder, duration), cut = whole(command), tmp_path / "cut"
    seed = np.random.SeedSequence().entropy  # another moment in every run: any of them has to do
    moment = np.random.default_rng(seed).uniform(0.0, 1.5 * duration)  # a new process is slower
    process = start(command, star, cut)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, said = finish(start(command, star, cut))
    how = f"killed after {moment} s; seed {seed}"
    if "already holds" not in said:  # else the last one was done before it was killed
        assert code == 0, f"{how}: {said}"
    found, expected = contents(cut), contents(folder)
    assert set(found) == set(expected), how
    for name, value in expected.items():
        assert found[name] == value, f"{name} differs; {how}"


def test_a_second_run_in_a_folder_is_refused_and_after_a_kill_it_is_not(star, tmp_path, capsys):
    first = start("classify", star, tmp_path / "out")
    while not (tmp_path / "out" / UNFINISHED).is_dir():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it has not ended before the second has begun
    assert classify(star, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"is being written by another run (process {first.pid} on" in said
    assert "choose another --output" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / "out" / ".running").exists()
    assert classify(star, tmp_path / "out") == 0
    assert not (tmp_path / "out" / ".running").exists()
