"""What labels tell as a whole: stability above chance, defocus between classes, rare classes kept."""

from dataclasses import replace

import numpy as np
import pandas as pd

from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.quality.suggestion import kept_by_rarity
from sklearn_cryoem.quality.table import defocus_share, stability

N = 4000


def ctf_of(defocus):
    flat = CTFTable.constant(
        len(defocus), defocus_u_angstrom=1e4, defocus_v_angstrom=1e4, astigmatism_angle_rad=0.0,
        voltage_volts=3e5, cs_angstrom=2.7e7, amplitude_contrast=0.1,
    )  # fmt: skip
    return replace(flat, defocus_u_angstrom=defocus + 300.0, defocus_v_angstrom=defocus - 300.0)


def test_stability_is_0_by_lot_and_1_for_the_same_classes():
    rng = np.random.default_rng(0)
    label = rng.integers(5, size=N)
    rows = [np.flatnonzero(label == number) for number in range(5)]
    np.testing.assert_allclose(stability([(label + 2) % 5], rows), 1.0)
    assert (np.abs(stability([rng.integers(8, size=N)], rows)) < 0.02).all()
    mixed = np.where(label < 2, label, rng.integers(2, 5, size=N))  # two classes stay, three are shuffled
    found = stability([mixed], rows)
    np.testing.assert_allclose(found[:2], 1.0)
    assert (found[2:] < 0.3).all()


def test_particles_without_another_label_do_not_count():
    label = np.arange(N) % 2
    rows = [np.flatnonzero(label == number) for number in range(2)]
    half = np.where(np.arange(N) < N // 2, label, -1)
    np.testing.assert_allclose(stability([half], rows), 1.0)
    assert np.isnan(stability([np.full(N, -1)], rows)).all()


def test_labels_that_do_not_know_of_the_defocus_have_the_share_of_chance():
    rng = np.random.default_rng(0)
    defocus, label = rng.uniform(8e3, 22e3, size=N), rng.integers(-1, 40, size=N)
    found = defocus_share(ctf_of(defocus), label, 41)
    assert found.by_chance == 39 / ((label >= 0).sum() - 1)
    assert found.share < 1.6 * found.by_chance and found.p_value > 0.01
    assert np.isnan(found.deviation[40]) and 0.7 < np.std(found.deviation[:40]) < 1.3


def test_labels_that_follow_the_defocus_have_the_share_that_they_explain():
    rng = np.random.default_rng(0)
    label = rng.integers(10, size=N)
    defocus = 1e4 + 300.0 * label + rng.normal(scale=300.0 * np.std(np.arange(10)), size=N)
    found = defocus_share(ctf_of(defocus), label, 10)
    assert 0.45 < found.share < 0.55 and found.p_value < 1e-10
    assert (np.diff(found.deviation) > 0).all() and found.deviation[0] < -10


def test_one_defocus_or_one_class_tells_nothing():
    label = np.arange(N) % 4
    assert np.isnan(defocus_share(ctf_of(np.full(N, 1e4)), label, 4).share)
    assert np.isnan(defocus_share(ctf_of(np.linspace(1e4, 2e4, N)), np.zeros(N, int), 1).share)


def test_what_is_kept_is_told_by_the_size_of_the_class():
    table = pd.DataFrame({"size": [60, 10, 20, 0, 10], "keep": [True, False, True, False, True]})
    assert kept_by_rarity(table) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert kept_by_rarity(table[3:4]) == []
