"""Checkpoints of a fit: killed or interrupted at any moment, the same call ends with the same bits."""

import hashlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer, load_model, save_model
from sklearn_cryoem._core import em as core_em
from sklearn_cryoem.alignment import em as alignment_em
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages, map_aligner, model_files, sml_clusterer
from sklearn_cryoem.estimators.model_files import checkpoint_of, fit_once
from sklearn_cryoem.manifold import fit

MAP = {"n_clusters": 3, "n_batches": 8, "max_iter": 2, "tol": 0.0, "random_state": 0}
SML = {"n_clusters": (4, 4), "max_iter": 15, "random_state": 0}
N_CROSS_FITTED = 11  # of the iterations of SML
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def particles(name):
    if name == "SMLClusterer":
        return aligned_to_truth(make_particles("ribosome", 300, box=24, snr=0.3, random_state=0))
    return make_particles("ribosome", 150, box=24, snr=0.5, n_views=3, max_shift=15.0, random_state=0)


def model(name):
    if name == "MAPAligner":
        return MAPAligner(**MAP)
    if name == "SMLClusterer":
        return SMLClusterer(**SML)
    return DeepClusterer(MAPAligner(**MAP), SMLClusterer(max_iter=8), images_per_subclass=12, random_state=0)


def digest(fitted):
    """One number for everything that was learned."""
    last = getattr(fitted, "first_", fitted)
    found = [fitted.labels_, fitted.class_averages_, last.class_averages_, last.log_posterior_]
    poses = getattr(fitted, "poses_", None)
    found += [] if poses is None else [poses.angle_rad, poses.shift]
    whole = b"".join(np.ascontiguousarray(array).tobytes() for array in found)
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


SCRIPT = """
import sys
from test_checkpoint import digest, model, particles
from sklearn_cryoem.estimators import model_files
model_files.SECONDS_BETWEEN = 0.0
stack = particles("DeepClusterer")
print("ready", flush=True)
print(digest(model("DeepClusterer").set_params(checkpoint=sys.argv[1]).fit(stack)), flush=True)
"""


@pytest.fixture(scope="module")
def stack():
    return particles("SMLClusterer")


@pytest.fixture(scope="module")
def unaligned():
    return particles("MAPAligner")


@pytest.fixture(autouse=True)
def every_state(monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)


# ---------------------------------------------------------------- all estimators
def start(folder):
    """Start SCRIPT in a process of its own; returns when it has said that it is ready."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline().strip() == "ready"
    return process


def test_a_fit_killed_at_a_random_moment_ends_with_the_same_bits(unaligned, tmp_path):
    """One that aligns, then clusters; tests/cli/test_resume.py has the two as commands."""
    began = time.monotonic()
    expected = digest(model("DeepClusterer").fit(unaligned))
    duration = time.monotonic() - began
    seed = np.random.SeedSequence().entropy  # another moment in every run: any of them has to do
    moment = np.random.default_rng(seed).uniform(0.0, duration)
    process = start(tmp_path)
    time.sleep(moment)
    process.kill()
    process.communicate()
    for kept in tmp_path.glob("*.npz"):  # states are whole, whenever the process died
        if not kept.name.startswith("."):
            model_files.CheckpointFile(kept).load()
    found, _ = start(tmp_path).communicate(timeout=120)
    assert found.strip() == expected, f"killed after {moment} s; seed {seed}"
    assert not list(tmp_path.iterdir())  # nor what was half-written


def test_only_the_same_fit_goes_on_from_a_state(unaligned, tmp_path):
    def path(aligner, data=unaligned):
        return checkpoint_of(aligner.set_params(checkpoint=tmp_path), data).path

    same = path(MAPAligner(**MAP))
    assert path(MAPAligner(**MAP, n_jobs=2, verbose=1)) == same
    others = [
        path(MAPAligner(**{**MAP, "random_state": 1})),
        path(MAPAligner(**{**MAP, "n_batches": 9})),
        path(MAPAligner(**MAP), unaligned[:140]),
    ]
    assert len({same, *others}) == 4


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        (MAPAligner(3), "MAPAligner"),
        (MAPAligner(3, random_state=np.random.RandomState(0)), "MAPAligner"),
        (SMLClusterer(4), "SMLClusterer"),
        (DeepClusterer(), "DeepClusterer"),
        (DeepClusterer(MAPAligner(3), random_state=0), "MAPAligner"),
    ],
    ids=["aligner", "aligner, state", "manifold", "deep", "aligner in deep"],
)
def test_a_checkpoint_needs_a_seed(unaligned, tmp_path, refused, name):
    data = aligned_to_truth(unaligned) if name == "SMLClusterer" else unaligned
    with pytest.raises(ValueError, match=rf"{name}\(.*needs random_state to be an int"):
        refused.set_params(checkpoint=tmp_path).fit(data)


def test_a_checkpoint_is_a_folder_which_is_made_and_empty_in_the_end(unaligned, tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(ValueError, match="Give a folder"):
        MAPAligner(**MAP, checkpoint=tmp_path / "file").fit(unaligned)
    MAPAligner(**MAP, checkpoint=tmp_path / "new" / "folder").fit(unaligned)
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_checkpoint_that_cannot_be_is_refused_before_any_image_is_read(stack, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(type(stack), "read", lambda self, rows=None: pytest.fail("images were read"))
    for folder in (tmp_path / "file" / "deeper", "/proc/no"):
        with pytest.raises(OSError, match="Give a folder of your own"):
            SMLClusterer(noise="group", checkpoint=folder, **SML).fit(stack)


# ---------------------------------------------------------------- Ctrl-C in a manifold
def interrupt_after(monkeypatch, n_passes, *, counts=lambda: True):
    """Press Ctrl-C in the pass over the data after `n_passes` of them, counted while `counts` is true."""
    calls, sweep = [], fit.sweep

    def interrupted(*args, **options):
        if counts():
            calls.append(args)
        if len(calls) > n_passes:
            raise KeyboardInterrupt
        return sweep(*args, **options)

    monkeypatch.setattr(fit, "sweep", interrupted)


@pytest.mark.parametrize("options", [{}, {"init": "random", "noise": "white"}])
@pytest.mark.parametrize("n_passes", [2, N_CROSS_FITTED, N_CROSS_FITTED + 2])
def test_ctrl_c_leaves_a_usable_model_and_the_same_call_goes_on(
    stack, tmp_path, monkeypatch, n_passes, options
):
    model = SMLClusterer(**SML, **options, checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, n_passes)
        with pytest.warns(UserWarning, match="interrupted after .* Fit again with the same checkpoint"):
            model.fit(stack)
    assert not model.converged_
    assert model.class_averages_.shape == (16, 24, 24)
    np.testing.assert_array_equal(model.predict(stack), model.labels_)
    assert model.transform(stack[:3]).shape == (3, 2)
    assert len(list(tmp_path.glob("smlclusterer-*.npz"))) == 1
    assert digest(model.fit(stack)) == digest(SMLClusterer(**SML, **options).fit(stack))
    assert not list(tmp_path.glob("smlclusterer-*.npz"))


def test_ctrl_c_before_anything_is_learnt_leaves_at_once(stack, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        SMLClusterer(**SML, checkpoint=tmp_path).fit(stack)


def test_vectors_have_checkpoints_and_models_with_one_can_be_saved(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((300, 8))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.warns(UserWarning, match="interrupted"):
            SMLClusterer(**SML, checkpoint=tmp_path).fit(vectors)
    model = SMLClusterer(**SML, checkpoint=tmp_path).fit(vectors)
    np.testing.assert_array_equal(model.weights_, SMLClusterer(**SML).fit(vectors).weights_)
    save_model(model, tmp_path / "model.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "model.npz").labels_, model.labels_)


# ---------------------------------------------------------------- the parts of a deep clustering
@pytest.fixture(scope="module")
def deep(unaligned):
    return digest(model("DeepClusterer").fit(unaligned))


def test_ctrl_c_in_a_class_leaves_what_is_done_and_the_same_call_does_the_rest(
    unaligned, deep, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, counts=lambda: any(tmp_path.glob("smlclusterer-*.done.npz")))
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted after"):
            model("DeepClusterer").set_params(checkpoint=tmp_path).fit(unaligned)
    done = sorted(path.name.split("-")[0] for path in tmp_path.glob("*.done.npz"))
    assert done == ["mapaligner", "smlclusterer"]
    assert len(list(tmp_path.glob("smlclusterer-*"))) == 2  # one of them under way
    with monkeypatch.context() as patch:
        patch.delattr(map_aligner, "fit_alignment")  # what was done is not done again
        assert digest(model("DeepClusterer").set_params(checkpoint=tmp_path, n_jobs=2).fit(unaligned)) == deep
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_pipeline_of_a_class_is_not_taken_for_a_whole_fit(unaligned, tmp_path, monkeypatch):
    second = make_pipeline(EigenImages(3), SMLClusterer(max_iter=6))
    deep = DeepClusterer(MAPAligner(**MAP), second, images_per_subclass=20, random_state=0)
    expected = clone(deep).fit(unaligned).labels_.tolist()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted after"):
            clone(deep).set_params(checkpoint=tmp_path).fit(unaligned)
    assert any(tmp_path.glob("smlclusterer-*.npz"))
    assert clone(deep).set_params(checkpoint=tmp_path).fit(unaligned).labels_.tolist() == expected
    assert not list(tmp_path.iterdir())


def test_steps_of_a_pipeline_are_kept_one_by_one(unaligned, tmp_path, monkeypatch):
    first = make_pipeline(MAPAligner(**MAP), SMLClusterer(4, max_iter=6, random_state=0))
    model = DeepClusterer(first, SMLClusterer(max_iter=6), images_per_subclass=20, random_state=0)
    expected = digest_of_pipeline(clone(model).fit(unaligned))

    def fails(*args, **options):
        raise OSError("lost power")

    with monkeypatch.context() as patch:
        patch.setattr(SMLClusterer, "fit", fails)
        with pytest.raises(OSError, match="lost power"):
            model.set_params(checkpoint=tmp_path).fit(unaligned)
    with monkeypatch.context() as patch:
        patch.delattr(map_aligner, "fit_alignment")
        assert digest_of_pipeline(model.fit(unaligned)) == expected
    assert model.first_[0].checkpoint is None
    assert not list(tmp_path.iterdir())


def digest_of_pipeline(model):
    return [model.labels_.tolist(), model.class_averages_.tobytes(), model.first_[-1].labels_.tolist()]


def test_a_result_that_finds_no_room_is_told_and_does_not_end_the_fit(unaligned, deep, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No room")

    monkeypatch.setattr(model_files.CheckpointFile, "load", lambda self: None)
    monkeypatch.setattr(model_files, "write_state", full)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert digest(model("DeepClusterer").set_params(checkpoint=tmp_path).fit(unaligned)) == deep


def test_a_full_disk_is_told_once_in_a_fit_of_many_states(stack, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No room")

    monkeypatch.setattr(model_files, "write_state", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SMLClusterer(**SML, checkpoint=tmp_path).fit(stack)
    assert sum("could not be kept" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("name", ["MAPAligner", "SMLClusterer"])
def test_an_interrupted_fit_whose_state_finds_no_room_is_not_taken_for_a_whole_one(
    stack, unaligned, tmp_path, monkeypatch, name
):
    def full(*args, **options):
        raise OSError(28, "No room")

    def interrupted(states, checkpoint, show, found=None):
        state, _ = last_state(states, checkpoint, show, found)
        checkpoint.keep(state, now=True)
        return state, True

    data, last_state = (unaligned if name == "MAPAligner" else stack), core_em.last_state
    with monkeypatch.context() as patch:
        patch.setattr(model_files, "write_state", full)
        patch.setattr(alignment_em if name == "MAPAligner" else sml_clusterer, "last_state", interrupted)
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="could not be kept"):
            fit_once(model(name), data, tmp_path)
    assert not list(tmp_path.iterdir())
    assert digest(fit_once(model(name), data, tmp_path)[0]) == digest(model(name).fit(data))
