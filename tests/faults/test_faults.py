"""Faults that long runs meet: each ends in an error that says what to do, and keeps what was finished.

docs/development/faults.md has a row for each of these tests.
"""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, SMLClusterer, save_model
from sklearn_cryoem._core import parallel
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.alignment.features import AlignmentImages, FeatureCache
from sklearn_cryoem.alignment.frames import KnownPoses
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import map_aligner, model_files
from sklearn_cryoem.io import read_particles, write_mrc, write_particles
from sklearn_cryoem.particles.mrc_files import inspect_mrc

OPTIONS = {"n_clusters": 3, "n_batches": 10, "max_iter": 2, "tol": 0.0, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs limits and pipes of Linux")


@pytest.fixture
def made():
    return make_particles("ribosome", 200, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)


@pytest.fixture
def path(made, tmp_path):
    write_mrc(tmp_path / "particles.mrcs", made.read(), made.pixel_size)
    return tmp_path / "particles.mrcs"


@pytest.fixture
def in_the_middle(monkeypatch):
    """Have something happen when a fit has read some blocks."""

    def arrange(action, after=12):
        calls, result = [], parallel.TaskPool._result

        def result_and_act(self, task):
            calls.append(task)
            if len(calls) == after:
                action()
            return result(self, task)

        monkeypatch.setattr(parallel.TaskPool, "_result", result_and_act)
        return calls

    return arrange


def run(script, *arguments, **options):
    """Run a script in a process of its own; returns the process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


# ---------------------------------------------------------------- disk full
SMALL_FILES = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
from sklearn_cryoem import MAPAligner, SMLClusterer, save_model
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_mrc, write_particles
stack = make_particles("ribosome", 200, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)
model = SMLClusterer(9, max_iter=2).fit(stack)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = sys.argv[1]
for write in (
    lambda: save_model(model, folder + "/model.npz"),
    lambda: write_mrc(folder + "/averages.mrcs", model.class_averages_),
    lambda: write_particles(stack, folder + "/particles.star"),
):
    try:
        write()
        print("written")
    except OSError as error:
        print(error)
"""


@only_linux
def test_a_full_disk_leaves_no_half_written_file(tmp_path):
    out, err = run(SMALL_FILES, tmp_path).communicate(timeout=120)
    lines = out.splitlines()
    assert len(lines) == 3, err
    assert all("No room for" in line and "no half-written file" in line for line in lines)
    assert not list(tmp_path.iterdir())


@only_linux
def test_a_fit_goes_on_though_its_state_finds_no_room(made, tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = MAPAligner(**OPTIONS).fit(made)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.warns(UserWarning, match="could not be kept.*No room.*The fit goes on"):
            aligner = MAPAligner(**OPTIONS, checkpoint=tmp_path / "state").fit(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(aligner.class_averages_, expected.class_averages_)
    assert not list((tmp_path / "state").iterdir())


@only_linux
def test_no_room_for_shared_features_is_said_before_they_are_written(tmp_path):
    import resource

    images = AlignmentImages(1000, 16, None, None, KnownPoses.identity(1000), 6.0, 2.0, 6.0, 5.0)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="JOBLIB_TEMP_FOLDER"):
            FeatureCache(images, 1e9, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


# ---------------------------------------------------------------- read-only folder
@pytest.fixture
def read_only_folder(tmp_path):
    """Root may write anywhere: become nobody for the time of the test."""
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder
        return
    for parent in [tmp_path, *tmp_path.parents]:
        if not parent.name.startswith(("test_", "popen-", "pytest-")):  # those that pytest has made
            break
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)


@only_linux
def test_a_folder_that_may_not_be_written_is_refused_before_the_fit(made, read_only_folder):
    with pytest.raises(PermissionError, match="Give a folder of your own"):
        MAPAligner(**OPTIONS, checkpoint=read_only_folder).fit(made)
    with pytest.raises(PermissionError):
        MAPAligner(**OPTIONS, checkpoint=read_only_folder / "new").fit(made)
    with pytest.raises(PermissionError, match="read_only"):
        write_particles(made, read_only_folder / "particles.star")
    with pytest.raises(PermissionError, match="read_only"):
        save_model(SMLClusterer(4), read_only_folder / "model.npz")
    assert not list(read_only_folder.iterdir())


# ---------------------------------------------------------------- stack file changed during the run
def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    time.sleep(0.01)
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(b"\0" * 50_000)
    os.utime(path, (time.time() + 10, time.time() + 10))  # later than the slack that clocks are given


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_a_stack_that_changes_during_the_run_ends_it(
    path, in_the_middle, tmp_path, monkeypatch, damage, n_jobs
):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    stack, copy = read_particles(path), tmp_path / "copy.mrcs"
    shutil.copy2(path, copy)
    monkeypatch.setattr(map_aligner, "cache_bytes", lambda: 0.0)  # so that images are read again
    options = {**OPTIONS, "checkpoint": tmp_path / "state", "n_jobs": n_jobs}
    in_the_middle(lambda: damage(path)) if n_jobs == 1 else damage(path)
    with pytest.raises(ParticleDataError, match=r"particles.mrcs: .*(has changed since|ended before)"):
        MAPAligner(**options).fit(stack)
    shutil.copy2(copy, path)  # repaired, the same call goes on from where it was
    kept = list((tmp_path / "state").glob("mapaligner-*.npz"))
    assert len(kept) == (1 if n_jobs == 1 else 0)
    repaired = MAPAligner(**options).fit(stack)
    np.testing.assert_array_equal(repaired.labels_, MAPAligner(**OPTIONS).fit(stack).labels_)


def test_a_stack_replaced_by_another_file_of_that_name_ends_the_next_run(path, made):
    stack = read_particles(path)
    other = path.with_name("other.mrcs")
    write_mrc(other, made.read()[::-1], made.pixel_size)
    os.utime(other, (time.time() + 10, time.time() + 10))
    os.replace(other, path)
    with pytest.raises(ParticleDataError, match="Read them again"):
        SMLClusterer(9, max_iter=2).fit(stack)


# ---------------------------------------------------------------- NaN
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("make", [MAPAligner, SMLClusterer])
def test_a_particle_that_is_not_finite_is_named(path, made, make, n_jobs):
    images = made.read().copy()
    images[37, 3, 5] = np.nan
    write_mrc(path, images, made.pixel_size, overwrite=True)
    stack = read_particles(path)
    with pytest.raises(ParticleDataError, match=r"particles.mrcs, image 38"):
        make(4, random_state=0, n_jobs=n_jobs).fit(stack)
    good, left_out = read_particles(path, permissive=True)
    assert len(good) == 199
    assert len(left_out) == 1


# ---------------------------------------------------------------- a worker killed
@only_linux
def test_a_worker_that_the_system_kills_is_reported_and_the_state_kept(made, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    calls, result = [], parallel.ProcessPool._result

    def result_and_kill(self, task):
        calls.append(task)
        if len(calls) == 16:
            worker = next(iter(self._executor._processes))
            os.kill(worker, signal.SIGKILL)
            time.sleep(0.5)
        return result(self, task)

    options = {**OPTIONS, "checkpoint": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(parallel.ProcessPool, "_result", result_and_kill)
        with pytest.raises(RuntimeError, match="memory runs out"):
            MAPAligner(**options, n_jobs=2).fit(made)
    assert len(list(tmp_path.glob("mapaligner-*.npz"))) == 1
    again = MAPAligner(**options, n_jobs=2).fit(made)
    np.testing.assert_array_equal(again.class_averages_, MAPAligner(**OPTIONS).fit(made).class_averages_)


# ---------------------------------------------------------------- a stalled mount
STALLED = """
import os, signal, sys, threading
from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.io import read_particles
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
path, kind, n_jobs = sys.argv[1], sys.argv[2], int(sys.argv[3])
stack = read_particles(path)
os.unlink(path)
os.mkfifo(path)  # nobody writes to it: opening it waits for ever, as on a mount whose server is gone
print("ready", flush=True)
model = MAPAligner(3, random_state=0, n_jobs=n_jobs) if kind == "map" else SMLClusterer(9, n_jobs=n_jobs)
model.fit(stack)
"""


@only_linux
@pytest.mark.parametrize(("kind", "n_jobs"), [("map", 1), ("map", 2), ("sml", 1), ("sml", 2)])
def test_ctrl_c_works_while_a_mount_stalls(path, kind, n_jobs):
    process = run(STALLED, path, kind, n_jobs)
    assert process.stdout.readline().strip() == "ready"
    time.sleep(2.0)
    assert process.poll() is None
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 20.0:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.0)
    took = time.monotonic() - began
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, error = process.communicate(timeout=20.0)  # workers that live on would hold it open
    assert took < 15.0, error
    assert "KeyboardInterrupt" in error


@only_linux
def test_a_pipe_is_no_stack(tmp_path):
    os.mkfifo(tmp_path / "particles.mrcs")
    with pytest.raises(ParticleDataError, match=r"Give an .mrcs file"):
        inspect_mrc(tmp_path / "particles.mrcs")  # and does not wait for somebody to write to it
