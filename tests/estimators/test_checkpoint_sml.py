"""Checkpoints of SMLClusterer: killed or interrupted at any moment, the same call ends with the same bits."""

import hashlib
import time

import numpy as np
import pytest

from sklearn_cryoem import SMLClusterer, load_model, save_model
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import _checkpoint
from sklearn_cryoem.manifold import em

OPTIONS = {"n_clusters": (4, 4), "max_iter": 15, "random_state": 0}
N_CROSS_FITTED = 11  # of its iterations
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SCRIPT = """
import sys
from test_checkpoint_sml import OPTIONS, digest, particles
from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.estimators import _checkpoint
_checkpoint.SECONDS_BETWEEN = 0.0
stack = particles()
print("ready", flush=True)
print(digest(SMLClusterer(checkpoint=sys.argv[1], **OPTIONS).fit(stack)), flush=True)
"""


def particles():
    return aligned_to_truth(make_particles("ribosome", 300, box=24, snr=0.3, random_state=0))


@pytest.fixture(scope="module")
def stack():
    return particles()


@pytest.fixture(autouse=True)
def every_state(monkeypatch):
    monkeypatch.setattr(_checkpoint, "SECONDS_BETWEEN", 0.0)


def digest(model):
    arrays = (
        model.weights_,
        model.noise_variance_,
        model.labels_,
        model.class_averages_,
        model.log_posterior_,
    )
    whole = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


def interrupt_after(monkeypatch, n_passes):
    """Press Ctrl-C in the pass over the data after `n_passes` of them."""
    calls, sweep = [], em.sweep

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) > n_passes:
            raise KeyboardInterrupt
        return sweep(*args, **options)

    monkeypatch.setattr(em, "sweep", interrupted)


def test_a_fit_killed_at_random_moments_ends_with_the_same_bits(stack, tmp_path, killed_at_random):
    began = time.monotonic()
    expected = digest(SMLClusterer(**OPTIONS).fit(stack))
    duration = time.monotonic() - began
    found, when = killed_at_random(SCRIPT, tmp_path, duration)
    assert found == expected, when
    assert not list(tmp_path.iterdir())  # nor what was half-written


@pytest.mark.parametrize("options", [{}, {"init": "random", "noise": "white"}])
@pytest.mark.parametrize("n_passes", [2, N_CROSS_FITTED, N_CROSS_FITTED + 2])
def test_ctrl_c_leaves_a_usable_model_and_the_same_call_goes_on(
    stack, tmp_path, monkeypatch, n_passes, options
):
    model = SMLClusterer(**OPTIONS, **options, checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, n_passes)
        with pytest.warns(UserWarning, match="interrupted after .* Fit again with the same checkpoint"):
            model.fit(stack)
    assert not model.converged_
    assert model.class_averages_.shape == (16, 24, 24)
    np.testing.assert_array_equal(model.predict(stack), model.labels_)
    assert model.transform(stack[:3]).shape == (3, 2)
    assert len(list(tmp_path.glob("smlclusterer-*.npz"))) == 1
    assert digest(model.fit(stack)) == digest(SMLClusterer(**OPTIONS, **options).fit(stack))
    assert not list(tmp_path.glob("smlclusterer-*.npz"))


def test_ctrl_c_before_anything_is_learnt_leaves_at_once(stack, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        SMLClusterer(**OPTIONS, checkpoint=tmp_path).fit(stack)


def test_vectors_have_checkpoints_too(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((300, 8))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.warns(UserWarning, match="interrupted"):
            SMLClusterer(**OPTIONS, checkpoint=tmp_path).fit(vectors)
    model = SMLClusterer(**OPTIONS, checkpoint=tmp_path).fit(vectors)
    np.testing.assert_array_equal(model.weights_, SMLClusterer(**OPTIONS).fit(vectors).weights_)


def test_a_model_with_a_checkpoint_folder_can_be_saved(stack, tmp_path):
    model = SMLClusterer(**OPTIONS, checkpoint=tmp_path / "state").fit(stack)
    save_model(model, tmp_path / "model.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "model.npz").labels_, model.labels_)


def test_a_checkpoint_needs_a_seed(stack, tmp_path):
    with pytest.raises(ValueError, match="needs random_state to be an int"):
        SMLClusterer(4, checkpoint=tmp_path).fit(stack)


def test_a_checkpoint_that_cannot_be_is_refused_before_any_image_is_read(stack, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(type(stack), "read", lambda self, rows=None: pytest.fail("images were read"))
    for folder in (tmp_path / "file" / "deeper", "/proc/no"):
        with pytest.raises(OSError, match="Give a folder of your own"):
            SMLClusterer(noise="group", checkpoint=folder, **OPTIONS).fit(stack)
