"""Detail coarser than `min_resolution` takes no part in likelihoods, and stands in the averages."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import adjusted_mutual_info_score as agreement

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import Volume, aligned_to_truth, make_particles
from sklearn_cryoem.metrics import fourier_ring_correlation
from sklearn_cryoem.physics.fourier import coarser_shells

BOX, PIXEL_SIZE = 48, 5.0
COMMON = {"mask_diameter": 180.0, "random_state": 0}


@pytest.fixture(scope="module")
def membrane_proteins():
    """Six views of a protein in bright discs of six sizes, brightnesses and places."""
    rng = np.random.default_rng(0)
    axis = (np.arange(BOX) - BOX // 2) * PIXEL_SIZE
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    protein = np.zeros_like(x)
    for _ in range(14):
        (a, b), c = rng.uniform(-35, 35, 2), rng.uniform(-45, 55)
        protein += rng.uniform(0.6, 1.4) * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 162)
    volumes = []
    for _ in range(6):
        radius, brightness, (a, b) = rng.uniform(50, 70), rng.uniform(0.6, 3.0), rng.uniform(-12, 12, 2)
        disc = (np.hypot(x - a, y - b) < radius) & (np.abs(z) < 20)
        volumes.append(Volume(protein + brightness * ndimage.gaussian_filter(disc.astype(float), 2), 5.0))
    options = {"box": BOX, "snr": 0.4, "n_views": 6, "max_shift": 10.0, "random_state": 0}
    return make_particles(volumes, 600, **options)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_classes_are_views_and_not_discs(membrane_proteins):
    stack, truth = membrane_proteins, membrane_proteins.truth
    found = []
    for kind, particles, finer, options in (
        (MAPAligner, stack, 50.0, {"n_clusters": 6, "n_batches": 60}),
        (SMLClusterer, aligned_to_truth(stack), 40.0, {"n_clusters": 16, "max_iter": 40}),
    ):
        for limit in (None, finer):
            labels = kind(min_resolution=limit, **options, **COMMON).fit(particles).labels_
            found.append((agreement(truth["view"], labels), agreement(truth["structure"], labels)))
    (view_before, disc_before), (view, disc) = found[:2]
    assert view_before < 0.7 and disc_before > 0.3, "discs drive the alignment"
    assert view > 0.9 and disc < 0.05
    (view_before, disc_before), (view, disc) = found[2:]
    assert view > view_before + 0.04 and disc < 0.65 * disc_before


def test_averages_show_the_detail_that_is_not_compared(membrane_proteins):
    stack = aligned_to_truth(membrane_proteins[:300])
    means = [
        SMLClusterer(4, max_iter=10, min_resolution=limit, **COMMON).fit(stack).class_averages_.mean(axis=0)
        for limit in (None, 50.0)
    ]
    assert fourier_ring_correlation(*means)[1:5].min() > 0.9, "coarser than 50 Angstrom lies the mean disc"


def test_the_limit_is_the_first_shell_that_counts(membrane_proteins):
    side = BOX * PIXEL_SIZE  # 240 Angstrom
    assert [coarser_shells(side, limit, 20) for limit in (None, 1000.0, 240.0, 60.0, 50.0)] == [0, 0, 0, 3, 4]
    settings = MAPAligner(2, min_resolution=50.0)._settings_for(membrane_proteins)
    assert settings.n_ignored == 4
    assert settings.k_start == 4 + 6.0, "as many shells as usual to begin with"
    clusterer = SMLClusterer(2, min_resolution=50.0)
    assert clusterer._open(membrane_proteins)[1].first_shells(40.0) == 4 + 6
    for estimator in (MAPAligner(2, min_resolution=10.0), SMLClusterer(2, min_resolution=10.0)):
        with pytest.raises(ValueError, match="Give a coarser one"):
            estimator.fit(membrane_proteins)
