"""A run that was stopped anywhere goes on from the state kept, and ends with the same bits."""

from dataclasses import fields

import numpy as np
import pytest

from sklearn_cryoem.alignment import em
from sklearn_cryoem.alignment.em import OnlineState, PassState, fit_alignment


class Killed(Exception):
    """Somebody pulled the plug."""


class Keeper:
    """Remembers the last state; after so many, the run is killed, or interrupted."""

    def __init__(self, state=None, after=None, by=Killed):
        self.state, self.left, self.by = state, after, by

    def load(self):
        return self.state

    def keep(self, state, *, now=False):
        self.state = state
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise self.by


@pytest.fixture
def run(rng, make_particles, make_settings):
    particles = make_particles(rng, 80, kinds=(3, 4, 5), noise=0.5)
    settings = make_settings(n_batches=3, batch_size=40, max_iter=3, tol=0.0, n_references=4)

    def fit(keeper):
        source, rng = particles.source(), np.random.RandomState(3)
        return fit_alignment(source, settings, rng, checkpoint=keeper)

    return fit


def assert_same(one, other):
    assert one[1] == other[1]
    for field in fields(PassState):
        a, b = getattr(one[0], field.name), getattr(other[0], field.name)
        if field.name in ("model", "stats"):
            for part in fields(a):
                np.testing.assert_array_equal(getattr(a, part.name), getattr(b, part.name))
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("after", [1, 3, 4, 6])
def test_a_run_killed_anywhere_ends_with_the_same_bits(run, after):
    undisturbed = run(None)
    keeper = Keeper(after=after)
    with pytest.raises(Killed):
        run(keeper)
    assert isinstance(keeper.state, OnlineState if after <= 3 else PassState)
    assert_same(run(Keeper(keeper.state)), undisturbed)


def test_a_run_that_had_ended_ends_again_without_a_pass(run, monkeypatch):
    keeper = Keeper()
    undisturbed = run(keeper)
    monkeypatch.setattr(em, "run_pass", None)  # would fail
    assert_same(run(Keeper(keeper.state)), undisturbed)


def test_ctrl_c_among_the_batches_leaves_a_usable_fit_and_a_state_to_go_on_from(run):
    undisturbed = run(None)
    keeper = Keeper(after=2, by=KeyboardInterrupt)
    with pytest.warns(UserWarning, match="interrupted after 2 of 3 mini-batches"):
        stopped, interrupted = run(keeper)
    assert interrupted and len(stopped.log_evidence) == 1 and not stopped.converged
    assert isinstance(keeper.state, OnlineState)  # not that of the pass that made the model usable
    assert_same(run(Keeper(keeper.state)), undisturbed)


def test_ctrl_c_among_the_passes_ends_with_the_last(run, monkeypatch):
    undisturbed = run(None)
    keeper, run_pass, done = Keeper(), em.run_pass, []

    def third_interrupted(features, rows, *rest, **options):
        done.append(len(rows) == 80)
        if sum(done) == 3:
            raise KeyboardInterrupt
        return run_pass(features, rows, *rest, **options)

    monkeypatch.setattr(em, "run_pass", third_interrupted)
    with pytest.warns(UserWarning, match="interrupted after 2 full passes"):
        stopped, interrupted = run(keeper)
    assert interrupted and len(stopped.log_evidence) == 2
    monkeypatch.undo()
    assert_same(run(Keeper(keeper.state)), undisturbed)


def test_ctrl_c_before_the_first_pass_ends_leaves_nothing_to_use(run, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(em, "run_pass", interrupted)
    with pytest.warns(UserWarning, match="after 0 of 3"), pytest.raises(KeyboardInterrupt):
        run(None)
