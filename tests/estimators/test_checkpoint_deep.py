"""DeepClusterer with a checkpoint: killed or interrupted, the same call ends with the same bits."""

import hashlib
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import _checkpoint, map_aligner
from sklearn_cryoem.manifold import em

ALIGNER = {"n_batches": 6, "batch_size": 60, "max_iter": 2, "tol": 0.0, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SCRIPT = """
import sys
from test_checkpoint_deep import deep, digest, particles
from sklearn_cryoem.estimators import _checkpoint
_checkpoint.SECONDS_BETWEEN = 0.0
stack = particles()
print("ready", flush=True)
print(digest(deep().set_params(checkpoint=sys.argv[1]).fit(stack)), flush=True)
"""


def particles():
    return make_particles("ribosome", 240, box=24, snr=0.5, n_views=3, max_shift=15.0, random_state=0)


def deep():
    second = SMLClusterer(max_iter=12)
    return DeepClusterer(MAPAligner(3, **ALIGNER), second, images_per_subclass=12, random_state=0)


def digest(model):
    arrays = (model.labels_, model.class_averages_, model.first_.class_averages_, model.poses_.angle_rad)
    whole = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def stack():
    return particles()


@pytest.fixture(scope="module")
def expected(stack):
    return digest(deep().fit(stack))


@pytest.fixture(autouse=True)
def every_state(monkeypatch):
    monkeypatch.setattr(_checkpoint, "SECONDS_BETWEEN", 0.0)


def test_a_fit_killed_at_random_moments_ends_with_the_same_bits(stack, expected, tmp_path, killed_at_random):
    began = time.monotonic()
    deep().fit(stack)
    duration = time.monotonic() - began
    found, when = killed_at_random(SCRIPT, tmp_path, duration)
    assert found == expected, when
    assert not list(tmp_path.iterdir())  # nor what was half-written


def test_ctrl_c_in_a_class_leaves_what_is_done_and_the_same_call_does_the_rest(
    stack, expected, tmp_path, monkeypatch
):
    calls, function = [], em.sweep

    def interrupted(*args, **options):
        if list(tmp_path.glob("smlclusterer-*.done.npz")):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(em, "sweep", interrupted)
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted after"):
            deep().set_params(checkpoint=tmp_path).fit(stack)
    done = sorted(path.name.split("-")[0] for path in tmp_path.glob("*.done.npz"))
    assert done[0] == "mapaligner"
    assert done.count("smlclusterer") == 1
    assert len(list(tmp_path.glob("smlclusterer-*"))) == 2  # one of them under way
    with monkeypatch.context() as patch:
        patch.delattr(map_aligner, "fit_alignment")  # what was done is not done again
        assert digest(deep().set_params(checkpoint=tmp_path, n_jobs=2).fit(stack)) == expected
    assert not list(tmp_path.iterdir())


def test_steps_of_a_pipeline_are_kept_one_by_one(stack, tmp_path, monkeypatch):
    first = make_pipeline(MAPAligner(3, **ALIGNER), SMLClusterer(4, max_iter=6, random_state=0))
    model = DeepClusterer(first, SMLClusterer(max_iter=6), images_per_subclass=20, random_state=0)
    expected = digest_of_pipeline(clone(model).fit(stack))

    def fails(*args, **options):
        raise OSError("lost power")

    with monkeypatch.context() as patch:
        patch.setattr(SMLClusterer, "fit", fails)
        with pytest.raises(OSError, match="lost power"):
            model.set_params(checkpoint=tmp_path).fit(stack)
    with monkeypatch.context() as patch:
        patch.delattr(map_aligner, "fit_alignment")
        assert digest_of_pipeline(model.fit(stack)) == expected
    assert model.first_[0].checkpoint is None
    assert not list(tmp_path.iterdir())


def digest_of_pipeline(model):
    return [model.labels_.tolist(), model.class_averages_.tobytes(), model.first_[-1].labels_.tolist()]


def test_a_checkpoint_needs_a_seed(stack, tmp_path):
    with pytest.raises(ValueError, match=r"DeepClusterer.*needs random_state to be an int"):
        DeepClusterer(checkpoint=tmp_path).fit(stack)
    with pytest.raises(ValueError, match=r"MAPAligner.*needs random_state to be an int"):
        DeepClusterer(MAPAligner(3), checkpoint=tmp_path, random_state=0).fit(stack)


def test_a_result_that_finds_no_room_is_told_and_does_not_end_the_fit(stack, expected, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No room")

    monkeypatch.setattr(_checkpoint.CheckpointFile, "load", lambda self: None)
    monkeypatch.setattr(_checkpoint, "write_state", full)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert digest(deep().set_params(checkpoint=tmp_path).fit(stack)) == expected
