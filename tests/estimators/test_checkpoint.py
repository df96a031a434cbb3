"""Checkpoints of a fit: killed at any moment, the same call goes on and ends with the same bits."""

import hashlib
import time

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import _checkpoint
from sklearn_cryoem.estimators._checkpoint import checkpoint_of

OPTIONS = {"n_clusters": 3, "n_batches": 20, "batch_size": 60, "max_iter": 3, "tol": 0.0, "random_state": 0}


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 150, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)


def digest(aligner):
    whole = b"".join(
        np.ascontiguousarray(a).tobytes()
        for a in (aligner.class_averages_, aligner.labels_, aligner.poses_.angle_rad, aligner.poses_.shift)
    )
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


SCRIPT = """
import sys
from test_checkpoint import OPTIONS, digest
from sklearn_cryoem import MAPAligner
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import _checkpoint
_checkpoint.SECONDS_BETWEEN = 0.0
stack = make_particles("ribosome", 150, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)
print("ready", flush=True)
print(digest(MAPAligner(checkpoint=sys.argv[1], **OPTIONS).fit(stack)), flush=True)
"""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_killed_at_random_moments_ends_with_the_same_bits(stack, tmp_path, killed_at_random):
    began = time.monotonic()
    expected = digest(MAPAligner(**OPTIONS).fit(stack))
    duration = time.monotonic() - began

    def states_are_whole():  # whenever the process died
        for kept in tmp_path.glob("mapaligner-*.npz"):
            _checkpoint.CheckpointFile(kept).load()

    found, when = killed_at_random(SCRIPT, tmp_path, duration, states_are_whole)
    assert found == expected, when
    assert not list(tmp_path.iterdir())  # nor what was half-written


def test_only_the_same_fit_goes_on_from_a_state(stack, tmp_path):
    def path(aligner, data=stack):
        return checkpoint_of(aligner.set_params(checkpoint=tmp_path), data).path

    same = path(MAPAligner(**OPTIONS))
    assert path(MAPAligner(**OPTIONS, n_jobs=2, verbose=1)) == same
    others = [
        path(MAPAligner(**{**OPTIONS, "random_state": 1})),
        path(MAPAligner(**{**OPTIONS, "tau_fudge": 3.0})),
        path(MAPAligner(**OPTIONS), stack[:140]),
    ]
    assert len({same, *others}) == 4


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_a_checkpoint_needs_a_seed(stack, tmp_path, random_state):
    aligner = MAPAligner(**{**OPTIONS, "random_state": random_state}, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="needs random_state to be an int"):
        aligner.fit(stack)


def test_a_checkpoint_is_a_folder(stack, tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(ValueError, match="Give a folder"):
        MAPAligner(**OPTIONS, checkpoint=tmp_path / "file").fit(stack)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_folder_is_made_and_empty_in_the_end(stack, tmp_path):
    MAPAligner(**OPTIONS, checkpoint=tmp_path / "new" / "folder").fit(stack)
    assert not list((tmp_path / "new" / "folder").iterdir())
