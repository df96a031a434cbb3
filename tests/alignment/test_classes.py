"""Averages of classes: those of one reference are its own, those of many the sum of their images."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.classes import aligned_classes
from sklearn_cryoem.alignment.mutual import Frames
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.update import update_model


@pytest.fixture
def finished(rng, make_particles, make_settings, make_model, references):
    """A pass over particles of three views with their true references, and its model and sums."""
    source = make_particles(rng, 60, noise=0.5).source()
    settings = make_settings(k_start=8.0, k_limit=8.0)
    model = make_model(references, noise=0.25)
    space = settings.space(source.box, 8.0)
    result = run_pass(source, np.arange(60), model, space, n_jobs=1)
    model, stats = update_model(result.statistics, model, space.grid, settings, source.noise_fraction)
    return model, stats, space.grid, settings, source.noise_fraction


def test_classes_of_one_reference_each_are_the_references(finished):
    model, stats, grid, settings, fraction = finished
    alone = Frames(np.arange(3), np.zeros(3), np.zeros((3, 2)))
    classes = aligned_classes(stats, alone, model, grid, settings, fraction)
    assert classes.mass.sum() == pytest.approx(60, rel=1e-4)
    for average, reference in zip(classes.averages, model.references, strict=True):
        assert np.corrcoef(average.ravel(), reference.ravel())[0, 1] > 0.98


def test_a_class_of_two_references_is_the_average_of_all_their_images(finished):
    model, stats, grid, settings, fraction = finished
    frames = Frames(np.array([0, 0, 1]), np.zeros(3), np.zeros((3, 2)))
    classes = aligned_classes(stats, frames, model, grid, settings, fraction)
    np.testing.assert_allclose(classes.mass, [stats.mass[:2].sum(), stats.mass[2]])
    mixed = model.references[0] * stats.mass[0] + model.references[1] * stats.mass[1]
    assert np.corrcoef(classes.averages[0].ravel(), mixed.ravel())[0, 1] > 0.95


def test_averages_are_turned_with_their_frame(finished):
    model, stats, grid, settings, fraction = finished
    half_turn = Frames(np.arange(3), np.array([np.pi, 0.0, 0.0]), np.zeros((3, 2)))
    straight = Frames(np.arange(3), np.zeros(3), np.zeros((3, 2)))
    turned, plain = (
        aligned_classes(stats, f, model, grid, settings, fraction).averages for f in (half_turn, straight)
    )
    inner = slice(1, None)  # a half turn about the pixel D // 2 maps rows 1 .. D - 1 onto themselves
    opposite = plain[0][inner, inner][::-1, ::-1]
    np.testing.assert_allclose(turned[0][inner, inner], opposite, atol=0.01 * np.abs(opposite).max())
    np.testing.assert_allclose(turned[1:], plain[1:], atol=1e-5)
