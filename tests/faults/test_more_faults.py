"""Faults of file handles, mounts, checkpoints and shared folders.

docs/development/faults.md has a row for each test.
"""

import errno
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem._core.files import FolderInUseError, folder_lock
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import model_files
from sklearn_cryoem.io import read_particles, write_mrc, write_particles
from sklearn_cryoem.particles import file_source

OPTIONS = {"n_clusters": (3, 3), "max_iter": 8, "tol": 0.0, "random_state": 0}
FEW = (
    "--align-classes 3 --align-batches 3 --align-iterations 1 --classes 4 --iterations 4 --jobs 1 -q".split()
)
pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    r"ignore:(?s).*\[no-poses\]$",  # of a .mrcs file, which has none
)
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs limits of Linux")


@pytest.fixture
def made():
    return make_particles("ribosome", 200, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)


@pytest.fixture
def path(made, tmp_path):
    (tmp_path / "mount").mkdir()
    write_mrc(tmp_path / "mount" / "particles.mrcs", made.read(), made.pixel_size)
    return tmp_path / "mount" / "particles.mrcs"


@pytest.fixture
def when_read(monkeypatch):
    """Have something happen before a block is read for the n-th time; nothing is kept in memory."""
    monkeypatch.setenv("SKLEARN_CRYOEM_MEMORY_LIMIT", "1 B")

    def arrange(action, after):
        calls, read = [], file_source._read_exactly

        def act_and_read(stream, buffer, file):
            calls.append(file)
            if len(calls) == after:
                action(stream)
            return read(stream, buffer, file)

        monkeypatch.setattr(file_source, "_read_exactly", act_and_read)
        return calls

    return arrange


# ---------------------------------------------------------------- handles of files
MANY_FILES = """
import os, pathlib, pickle, resource, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
from sklearn_cryoem import MAPAligner, ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_mrc
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc
folder = pathlib.Path(sys.argv[1])
images = make_particles("ribosome", 500, box=16, snr=1.0, n_views=3, random_state=0).read()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for i, image in enumerate(images):
    write_mrc(folder / f"{i}.mrcs", image[None], 10.0)
files = [inspect_mrc(folder / f"{i}.mrcs") for i in range(500)]
source = FileSource(files, np.arange(500), np.zeros(500, int))
stack, whole = ParticleStack(source, pixel_size=10.0), ParticleStack(images, pixel_size=10.0)
for n_jobs in (1, 2):
    for model in (
        SMLClusterer(4, max_iter=3, random_state=0, n_jobs=n_jobs),
        MAPAligner(2, n_batches=2, max_iter=1, random_state=0, n_jobs=n_jobs),
    ):
        assert np.array_equal(model.fit(stack).labels_, model.fit(whole).labels_)
        assert len(os.listdir("/proc/self/fd")) < 64
print("done")
"""


@only_linux
def test_five_hundred_files_are_read_with_64_handles(tmp_path):
    command = [sys.executable, "-c", MANY_FILES, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=170)
    assert done.stdout.strip() == "done", done.stderr


@only_linux
def test_handles_that_others_took_are_said_to_be_missing(path):
    import resource

    stack, limits = read_particles(path), resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 8, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(ParticleDataError, match=r"Too many open files.*raise the limit \(ulimit -n\)"):
            stack.read()
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(stack.read()) == 200


# ---------------------------------------------------------------- mounts
def test_a_mount_that_goes_ends_the_fit_and_one_that_comes_back_lets_it_go_on(
    path, tmp_path, monkeypatch, when_read
):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    expected = SMLClusterer(**OPTIONS).fit(read_particles(path))
    stack, gone = read_particles(path), tmp_path / "gone"
    calls = when_read(lambda stream: path.parent.rename(gone), after=16)
    model = SMLClusterer(**OPTIONS, checkpoint=tmp_path / "state")
    with pytest.raises(ParticleDataError, match=r"cannot be opened any more \(No such file.*Put it back"):
        model.fit(stack)
    assert len(list((tmp_path / "state").glob("smlclusterer-*.npz"))) == 1
    gone.rename(path.parent)
    n_before = len(calls)
    np.testing.assert_array_equal(model.fit(stack).class_averages_, expected.class_averages_)
    assert len(calls) > n_before


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_mount_that_stalls_for_a_while_costs_that_while(path, when_read, n_jobs):
    expected = SMLClusterer(**OPTIONS).fit(read_particles(path))
    back = threading.Event()
    when_read(lambda stream: (threading.Timer(1.0, back.set).start(), back.wait(30.0)), after=8)
    began = time.monotonic()
    model = SMLClusterer(**OPTIONS, n_jobs=n_jobs).fit(read_particles(path))
    assert back.is_set() and time.monotonic() - began >= 1.0
    np.testing.assert_array_equal(model.class_averages_, expected.class_averages_)


@only_linux
def test_a_disk_that_fails_is_named(path, when_read):
    def fails(stream):
        broken = os.open("/proc/self/mem", os.O_RDONLY)  # whose first page nobody can read: EIO
        os.dup2(broken, stream.fileno())
        os.close(broken)

    when_read(fails, after=1)
    with pytest.raises(
        ParticleDataError, match=r"particles.mrcs: cannot be read \(Input/output error.*the disk or the mount"
    ):
        SMLClusterer(**OPTIONS).fit(read_particles(path))


# ---------------------------------------------------------------- checkpoints
def test_the_state_of_a_fit_to_other_images_is_not_gone_on_from(made, path, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    state = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(model_files.CheckpointFile, "remove", lambda self: None)  # as if it had been killed
        SMLClusterer(**OPTIONS, checkpoint=state).fit(read_particles(path))
    (kept,) = state.iterdir()
    before = kept.read_bytes()
    write_mrc(path, made.read()[::-1], made.pixel_size, overwrite=True)
    others = read_particles(path)
    found = SMLClusterer(**OPTIONS, checkpoint=state).fit(others)
    np.testing.assert_array_equal(found.labels_, SMLClusterer(**OPTIONS).fit(others).labels_)
    assert kept.read_bytes() == before


def test_a_state_that_was_damaged_is_refused_by_name(path, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    state = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(model_files.CheckpointFile, "remove", lambda self: None)
        SMLClusterer(**OPTIONS, checkpoint=state).fit(read_particles(path))
    (kept,) = state.iterdir()
    os.truncate(kept, kept.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"{kept.name}.*damaged"):
        SMLClusterer(**OPTIONS, checkpoint=state).fit(read_particles(path))


SAME_FIT = """
import hashlib, sys, warnings
warnings.simplefilter("ignore")
from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.estimators import model_files
from sklearn_cryoem.io import read_particles
model_files.SECONDS_BETWEEN = 0.0
model = SMLClusterer((3, 3), max_iter=8, tol=0.0, random_state=0, checkpoint=sys.argv[2])
print(hashlib.sha256(model.fit(read_particles(sys.argv[1])).class_averages_.tobytes()).hexdigest())
"""


def test_two_same_fits_with_one_checkpoint_folder_end_with_the_same_bits(path, tmp_path):
    command = [sys.executable, "-c", SAME_FIT, str(path), str(tmp_path / "state")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in pair]
    assert said[0] == said[1] and len(said[0]) == 64
    assert not list((tmp_path / "state").iterdir())


# ---------------------------------------------------------------- folders
def test_one_run_at_a_time_in_a_folder(tmp_path):
    with folder_lock(tmp_path):
        with (
            pytest.raises(FolderInUseError, match=f"process {os.getpid()} on .* since "),
            folder_lock(tmp_path),
        ):
            pass
        assert (tmp_path / ".running").exists()
    assert not list(tmp_path.iterdir())
    with folder_lock(tmp_path):
        pass


def test_a_file_system_without_locks_keeps_nobody_out_and_says_so(tmp_path, monkeypatch, caplog):
    from sklearn_cryoem._core import files

    def refuses(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuses)
    with caplog.at_level("INFO"), folder_lock(tmp_path), folder_lock(tmp_path):
        pass
    assert "keep other runs out" in caplog.text


@only_linux
@pytest.mark.parametrize("last", ["class_averages.mrcs", "gallery.png", "summary.json"])
def test_a_disk_that_fills_up_while_results_are_written_leaves_whole_files_and_what_was_fitted(
    made, tmp_path, monkeypatch, capsys, last
):
    write_particles(made, tmp_path / "particles.star")
    out, replace = tmp_path / "out", os.replace

    def fills_up(source, target):
        if os.fspath(target) == str(out / last):  # not where writing is tried before the fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    command = ["classify", str(tmp_path / "particles.star"), "-o", str(out), *FEW]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fills_up)
        assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    names = {name.name for name in out.iterdir()}
    assert not names & {last, "summary.json"}
    assert not [name for name in names if name.startswith(".")]  # nothing half-written, no lock
    assert sorted(name.name.split("-")[0] for name in (out / "unfinished").iterdir()) == [
        "mapaligner",
        "smlclusterer",
        "smlclusterer",  # the one that tells whether classes come out again
    ]
    with monkeypatch.context() as patch:
        patch.delattr("sklearn_cryoem.estimators.map_aligner.fit_alignment")  # nothing is fitted again
        patch.delattr("sklearn_cryoem.estimators.sml_clusterer.fit_states")
        assert main(command) == 0
    assert (out / "summary.json").exists() and not (out / "unfinished").exists()
