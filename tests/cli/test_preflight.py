"""What can be known to fail after the fits is said before them."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import matplotlib
import numpy as np
import pytest

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer
from sklearn_cryoem.cli import preflight
from sklearn_cryoem.cli.console import Console
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.cli.run_folder import RunFolder
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import read_particles, write_particles

FEW = ["--align-classes", "3", "--classes", "4", "--jobs", "1", "--quiet"]
COMMANDS = (["classify"], ["classify", "--skip-align"], ["deep", "--images-per-subclass", "10"])
DiskUsage = namedtuple("DiskUsage", "total used free")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def particles(tmp_path):
    path = tmp_path / "particles.mrcs"
    stack = make_particles("ribosome", 24, box=16, snr=1.0, path=path, random_state=0)
    write_particles(stack, tmp_path / "particles.star")
    return tmp_path / "particles.star"


@pytest.fixture
def no_fit(monkeypatch):
    """Any fit ends the test."""

    def fit(self, X, y=None):
        raise AssertionError("a fit began")

    for kind in (MAPAligner, SMLClusterer, DeepClusterer):
        monkeypatch.setattr(kind, "fit", fit)


def said(capsys):
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    return errors[0]


# ------------------------------------------------------------------------------------ the machine
def test_pictures_need_no_backend_that_the_environment_names():
    backend = "module://no_such_package.backend"
    code = (
        "import io, numpy, sys\n"
        "from sklearn_cryoem.report import report\n"
        "from sklearn_cryoem.plotting import plot_class_averages\n"
        "plot_class_averages(numpy.eye(8)[None]).figure.savefig(io.BytesIO(), dpi=20)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import os; print(os.environ['MPLBACKEND'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    environment["MPLBACKEND"] = backend
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == backend, "children of this process see what was set"


def test_a_backend_that_is_there_stays_chosen_for_pyplot():
    code = "import sklearn_cryoem.plotting, matplotlib; print(matplotlib.rcParams['backend'])"
    environment = {**os.environ, "MPLBACKEND": "svg"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "svg"


@pytest.mark.parametrize("words", [*COMMANDS, ["demo"]], ids=" ".join)
def test_pictures_that_cannot_be_drawn_are_said_before_anything_is_read(words, tmp_path, capsys, no_fit):
    given = [] if words == ["demo"] else ["no.star"]
    (tmp_path / "no.star").touch()
    with matplotlib.rc_context({"text.usetex": True, "text.latex.preamble": r"\undefined"}):
        environment = os.environ["PATH"]
        os.environ["PATH"] = str(tmp_path)  # no LaTeX in it
        try:
            code = run(words[0], *[tmp_path / name for name in given], "-o", tmp_path / "out", *words[1:])
        finally:
            os.environ["PATH"] = environment
    assert code == 1
    assert "pictures cannot be drawn here" in (text := said(capsys))
    assert "Correct or remove the matplotlibrc file" in text
    assert not (tmp_path / "out").exists()


def test_dependencies_older_than_declared_are_named(monkeypatch, capsys):
    assert preflight.outdated() == []
    old = {"mrcfile": "1.0.0", "numpy": "1.20.0"}
    monkeypatch.setattr(preflight, "version", lambda name: old.get(name, "999"))
    assert [(name, found) for name, found, _ in preflight.outdated()] == [
        ("mrcfile", "1.0.0"), ("numpy", "1.20.0")
    ]  # fmt: skip
    preflight.check_machine(Console())
    assert "Install it with: pip install 'mrcfile>=1." in capsys.readouterr().err


# ------------------------------------------------------------------------------------ the results
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_folder_that_a_star_file_cannot_name_is_said_before_the_fits(
    words, particles, tmp_path, capsys, no_fit
):
    write_particles(read_particles(particles).with_poses(_identity(24)), particles, overwrite=True)
    assert run(words[0], particles, "-o", tmp_path / "two\nlines", *words[1:], *FEW) == 1
    text = said(capsys)
    assert "tried before the fits" in text and "rename the file or folder" in text and "trial" not in text
    assert not (tmp_path / "two\nlines").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_unicode_is_said_before_the_fits(particles, tmp_path, capsys, no_fit):
    assert run("classify", particles, "-o", tmp_path / os.fsdecode(b"out\xff"), *FEW) == 1
    assert "Rename the file or its folder" in said(capsys)


def test_mirrored_poses_that_a_cs_file_cannot_hold_are_said_before_the_fits(
    particles, tmp_path, capsys, no_fit
):
    assert run("convert", particles, tmp_path / "p.cs", "--quiet") == 0
    assert run("classify", tmp_path / "p.cs", "-o", tmp_path / "out", "--mirror", *FEW) == 1
    assert "Write a .star file, align without mirrors" in said(capsys)


@pytest.mark.parametrize("broken", ["write_class_averages", "write_particles", "write_selection"])
def test_whatever_writing_would_raise_is_raised_before_the_fits(
    broken, particles, tmp_path, capsys, no_fit, monkeypatch
):
    def fail(*args, **keywords):
        raise TypeError("Cannot cast ufunc")  # what versions that do not go together may do

    monkeypatch.setattr(f"sklearn_cryoem.io.{broken}", fail)
    assert run("classify", particles, "-o", tmp_path / "out", *FEW) == 1
    assert "tried before the fits: Cannot cast ufunc" in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", COMMANDS[::2], ids=" ".join)
def test_too_little_room_is_said_before_the_fits(words, particles, tmp_path, capsys, no_fit, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - 9000, 9000))
    assert run(words[0], particles, "-o", tmp_path / "out", *words[1:], *FEW) == 1
    assert "Make room, or write elsewhere" in said(capsys)


def test_the_room_asked_for_is_about_what_a_run_takes(particles, tmp_path, monkeypatch):
    asked, taken = [], []
    monkeypatch.setattr(preflight, "check_room", lambda path, n_bytes: asked.append(n_bytes))
    finish = RunFolder.write_summary

    def weigh(folder, *args, **options):
        finish(folder, *args, **options)
        taken.append(sum(p.stat().st_size for p in folder.path.rglob("*") if p.suffix != ".png"))

    monkeypatch.setattr(RunFolder, "write_summary", weigh)
    few = ["--align-iterations", "1", "--iterations", "2", "--align-batches", "1"]
    assert run("classify", particles, "-o", tmp_path / "out", *FEW, *few) == 0
    assert 0.5 * taken[0] < asked[0] < 10 * taken[0], (asked, taken)


def test_a_cache_folder_is_tried_before_the_fits(particles, tmp_path, capsys, no_fit, monkeypatch):
    (tmp_path / "file").touch()
    words = ["classify", particles, "-o", tmp_path / "out", *FEW, "--cache-folder"]
    assert run(*words, tmp_path / "file") == 1
    assert "Give a cache folder of your own" in said(capsys)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - 9000, 9000))
    assert run(*words, tmp_path / "cache") == 1
    assert "cache: it will have" in said(capsys)
    assert not any((tmp_path / "cache").iterdir())


def test_what_lies_in_a_cache_folder_counts_as_room(tmp_path, monkeypatch):
    stack = make_particles("ribosome", 24, box=16, snr=1.0, random_state=0).with_poses(_identity(24))
    SMLClusterer((2, 2), max_iter=1, cache_folder=tmp_path, random_state=0)
    clusterer = SMLClusterer((2, 2), cache_folder=tmp_path)
    _, space = clusterer._open(stack)
    blocks = space.blocks(stack).kept_in(tmp_path)
    blocks.load(0, blocks.layout.n_shells)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 0))
    clusterer.validate(stack)  # the same command again finds what it has kept


# ------------------------------------------------------------------------------------ other commands
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("out.txt", "Change the suffix"),
        ("missing/out.star", "Make it first"),
        ("n" * 250 + ".star", "Choose another folder or name"),
    ],
)
def test_outputs_that_cannot_be_are_said_before_anything_is_read(
    name, remedy, particles, tmp_path, capsys, monkeypatch
):
    def read(*args, **keywords):
        raise AssertionError("particles were read")

    monkeypatch.setattr("sklearn_cryoem.io.read_particles", read)
    for words in (
        ["convert", particles, tmp_path / name],
        ["select", particles, "--classes", "1", "-o", tmp_path / name],
    ):
        assert run(*words) == 1
        assert remedy in said(capsys)


def test_a_report_that_cannot_be_written_is_not_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sklearn_cryoem.report.report", lambda *args, **keywords: pytest.fail("it was made"))
    assert run("report", tmp_path, "-o", tmp_path / ("n" * 250 + ".html")) == 1
    assert "Choose another folder or name" in said(capsys)


def test_a_simulation_without_room_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - 9000, 9000))
    assert run("simulate", "-o", tmp_path / "out", "--particles", "100", "--box", "16") == 1
    assert "particles.mrcs: it will have 100.0 kB" in said(capsys)


def test_odd_names_are_told_wherever_they_are_told(tmp_path, monkeypatch):
    class Stream:
        encoding, text = "ascii", ""

        def write(self, text):
            text.encode("ascii")
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Stream())
    Console().say("in \xe9t\xe9/\udcff")
    assert sys.stdout.text == "in \\xe9t\\xe9/\\udcff\n"


def test_a_file_system_that_cannot_be_written_is_named(particles, tmp_path, capsys, no_fit, monkeypatch):
    import tempfile

    def refuse(*args, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert run("classify", particles, "-o", tmp_path / "out", *FEW) == 1
    assert "cannot be written (Read-only file system). Choose another folder or name" in said(capsys)


def _identity(n):
    from sklearn_cryoem import Poses

    return Poses(np.zeros(n), np.zeros((n, 2)))
