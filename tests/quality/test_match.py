"""Match of particles with their class: its slow twin, and what a selection leaves out by it."""

import numpy as np
import pytest

from sklearn_cryoem import ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles, make_session
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane
from sklearn_cryoem.quality import class_quality, match, particle_match, reasons_to_leave, unlike_their_class
from sklearn_cryoem.quality.checks import foreign_backgrounds
from sklearn_cryoem.quality.measures import class_sums


def test_it_is_the_matched_filter_of_the_average_of_the_others():
    stack = aligned_to_truth(make_particles("ribosome", 9, box=24, snr=0.5, random_state=0))
    labels = np.array([0, 1, 0, 1, 1, -1, 2, 1, 1])
    match = particle_match(labels, stack)
    rows = np.flatnonzero(labels == 1)
    blocks = FeatureBlocks(stack[rows], half_plane(24))
    block, sums, layout = blocks.load(0, blocks.layout.n_shells), class_sums(blocks), blocks.layout
    y, c2 = block.data.astype(float), block.norm[:, layout.norm_index].astype(float)
    for i, row in enumerate(rows):
        others = np.arange(len(rows)) != i
        signal, noise = np.maximum(sums.signal, 1e-3 * sums.noise), sums.noise
        average = y[others].sum(0) / (c2[others].sum(0) + (noise / signal)[layout.shell])
        weight = layout.information / noise[layout.shell]
        wanted = (weight * y[i] * average).sum() / np.sqrt((weight * c2[i] * average**2).sum())
        np.testing.assert_allclose(match[row], wanted, rtol=1e-5)
    assert (match[[5, 6]] == 0).all(), "no class, and a class of one"


def test_noise_has_mean_zero_and_variance_one():
    images = np.random.default_rng(1).normal(size=(400, 32, 32))
    match = particle_match(np.zeros(400, dtype=int), ParticleStack(images))
    assert abs(match.mean()) < 0.2 and match.std() == pytest.approx(1.0, abs=0.15)
    members = np.arange(400) < 200  # the others are compared with an average that they are no part of
    match = particle_match(np.zeros(400, dtype=int), ParticleStack(images), members=members)
    assert abs(match[~members].mean()) < 0.2 and match[~members].std() == pytest.approx(1.0, abs=0.2)
    alone = particle_match(np.zeros(200, dtype=int), ParticleStack(images[:200]))
    np.testing.assert_allclose(match[members], alone, rtol=1e-4, atol=1e-4)


def test_a_selection_leaves_out_at_most_the_worst_one_in_a_hundred():
    match = np.linspace(0.0, 10.0, 1001)
    assert unlike_their_class(match).sum() == 11, "the one that does not match at all, and 1 % of the others"
    assert unlike_their_class(match + 3.95).sum() == 5, "those below 4"
    assert not unlike_their_class(match + 4.0).any() and unlike_their_class([]).shape == (0,)


def test_an_image_with_carbon_or_ice_in_its_background_matches_nothing():
    """Its background was divided by more than its noise; not so where the edge of a micrograph was padded."""
    stack = make_session(n_samples=300, box=40, snr=0.15, random_state=0)
    images = stack.images.read().copy()
    images[5, :8] = images[5, 8]  # padding has little fine noise too
    stack = ParticleStack(images, noise_group=stack.noise_group, truth=stack.truth)
    foreign, is_junk = foreign_backgrounds(stack), stack.truth["is_junk"].to_numpy(dtype=bool)
    kind = stack.truth["junk_kind"].to_numpy()
    assert foreign[kind == "edge"].mean() > 0.6
    assert not foreign[~is_junk].any() and not foreign[5]
    match = particle_match(np.zeros(300, dtype=int), stack)
    np.testing.assert_array_equal(match == 0, foreign)
    table = class_quality(np.where(kind == "edge", 1, 0), stack)
    assert table["background"][0] < 0.2 and "in their background" in table["reasons"][1]
    told = class_quality(np.where(kind == "edge", 1, 0), stack, match=np.where(kind == "edge", 3.0, 8.0))
    assert told["match"].tolist() == [8.0, 3.0] and "match it by 3 in the median" in told["reasons"][1]
    assert not foreign_backgrounds(stack[:19]).any(), "too few to know what is usual"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_is_given_up_is_compared_at_the_resolution_of_the_classes(monkeypatch):
    stack = aligned_to_truth(make_particles("ribosome", 120, box=24, snr=1.0, n_views=2, random_state=0))
    model = SMLClusterer((2, 1), max_iter=5, max_resolution=90.0).fit(stack)
    value, own = particle_match(model, stack), model.labels_.copy()
    weak = np.where(own == 0, 0.0, value)  # so that the class is given up
    found = []
    monkeypatch.setattr(
        match, "particle_match", lambda *a, **k: found.append(particle_match(*a, **k)) or found[0]
    )
    reasons_to_leave(model, stack, class_quality(model, stack), weak)
    np.testing.assert_allclose(found[0][own == 1], value[own == 1])
    np.testing.assert_array_equal(model.labels_, own)
    own_rows = np.flatnonzero(own == 1)
    value[own_rows[:2]] = 0.0, 0.1  # of a class that is kept: soiled, and no better than noise
    monkeypatch.setattr(match, "particle_match", lambda *a, **k: value)
    told = reasons_to_leave(model, stack, class_quality(model, stack), value, last=True)
    assert told[own_rows[:2]].tolist() == [match.FOREIGN, match.UNLIKE]
    assert reasons_to_leave(model, stack, class_quality(model, stack), value)[own_rows[1]] == ""
