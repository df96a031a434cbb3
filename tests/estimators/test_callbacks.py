"""Callbacks of scikit-learn hear of every step of a fit."""

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, SMLClusterer, load_model, save_model
from sklearn_cryoem.datasets import make_particles

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9 has no callbacks")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Listener:
    """Remembers what it was told."""

    def __init__(self):
        self.heard = []

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.heard.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context):
        self.heard.append(("end", context.task_name))


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 90, box=24, pixel_size=15.0, snr=1.0, n_views=3, random_state=0)


QUICK = {"n_clusters": 2, "n_batches": 4, "max_iter": 2, "tol": 0.0, "random_state": 0}


def test_every_mini_batch_and_pass_is_told(stack):
    listener = Listener()
    aligner = MAPAligner(**QUICK).set_callbacks(listener).fit(stack)
    steps = 4 + aligner.n_iter_
    assert listener.heard[:2] == ["setup", ("begin", "fit")]
    assert listener.heard[2:-2] == [("begin", "mini-batch or pass"), ("end", "mini-batch or pass")] * steps
    assert listener.heard[-2:] == [("end", "fit"), "teardown"]


def test_scikit_learns_progress_bar_runs(stack, capsys):
    pytest.importorskip("rich")
    MAPAligner(**QUICK).set_callbacks(callback.ProgressBar()).fit(stack)
    assert "MAPAligner" in capsys.readouterr().out


def test_callbacks_are_torn_down_after_an_error(stack):
    listener = Listener()
    with pytest.raises(ValueError, match="references"):
        MAPAligner(50).set_callbacks(listener).fit(stack[:10])
    assert listener.heard in ([], ["setup", "teardown"])


def test_callbacks_are_no_part_of_a_saved_model(stack, tmp_path):
    aligner = MAPAligner(**QUICK).set_callbacks(Listener()).fit(stack)
    save_model(aligner, tmp_path / "model.npz")
    assert not hasattr(load_model(tmp_path / "model.npz"), "_skl_callbacks")


def test_every_iteration_of_a_manifold_is_told():
    listener = Listener()
    vectors = np.random.default_rng(0).standard_normal((60, 3))
    clusterer = SMLClusterer(4, max_iter=7, tol=0.0, random_state=0).set_callbacks(listener).fit(vectors)
    assert listener.heard.count(("end", "iteration")) == len(clusterer.log_posterior_)
    assert listener.heard[0] == "setup" and listener.heard[-2:] == [("end", "fit"), "teardown"]


def test_a_stream_tells_of_its_first_chunk_and_tears_down():
    listener = Listener()
    vectors = np.random.default_rng(0).standard_normal((60, 3))
    clusterer = SMLClusterer(4, max_iter=5, random_state=0).set_callbacks(listener)
    clusterer.partial_fit(vectors[:30]).partial_fit(vectors[30:])
    assert listener.heard[0] == "setup" and listener.heard[-1] == "teardown"
    assert not hasattr(clusterer, "_callback_fit_ctx")
