"""Terms of every image against aligning it at every cell and multiplying on the polar grid."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.expectation import expect
from sklearn_cryoem.alignment.maximisation import accumulate
from sklearn_cryoem.alignment.references import reference_bank
from sklearn_cryoem.alignment.residuals import image_terms
from sklearn_cryoem.alignment.update import polar_statistics, residual_power
from sklearn_cryoem.physics.polar import polar_transform
from sklearn_cryoem.physics.rotation import aligned_images


@pytest.fixture
def setting(rng, make_particles, make_settings, make_model, references):
    def build(n_images=6, *, split_angstrom=3000.0, noise=0.8):
        particles = make_particles(rng, n_images, split_angstrom=split_angstrom, noise=noise)
        source, space = particles.source(), make_settings().space(32, 10.0)
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        values = polar_transform(references, space.grid)
        bank = reference_bank(values, space, source.n_even)
        precision = np.full(features.power.shape, 1 / noise**2, dtype=np.float32)
        model = make_model(references, noise=noise**2)
        posterior = expect(features, precision, bank, space, model.log_prior(space), floor=1e-3)
        return particles, source, space, features, values, posterior

    return build


@pytest.mark.parametrize("split_angstrom", [None, 4000.0, 10000.0])
def test_terms_are_averages_over_the_posterior_of_turned_and_shifted_references(
    setting, references, split_angstrom
):
    _, source, space, features, _, posterior = setting(split_angstrom=split_angstrom)
    terms = image_terms(features, posterior, space, polar_transform(references, space.grid))
    images = polar_transform(source.masked_images(np.arange(6)), space.grid)
    ctf = source.ctf_on(np.arange(6), space.grid)
    ctf = np.ones(images.shape) if ctf is None else ctf
    cross, norm = np.zeros((6, space.n_rings)), np.zeros((6, space.n_rings))
    cluster, shift = np.divmod(posterior.row, space.n_shifts)
    assert len(cluster) > 30
    for cell in range(len(cluster)):
        i, psi = posterior.image[cell], space.angles_rad[posterior.angle[cell]]
        # aligning with (psi, t) is undone by turning back, after moving by -R_psi t = -u
        moved = aligned_images(references[cluster[cell]][None], [0.0], [-space.shifts_px[shift[cell]]])
        back = aligned_images(moved, [-psi], [[0.0, 0.0]])
        a = ctf[i] * polar_transform(back, space.grid)[0]
        cross[i] += posterior.weight[cell] * np.mean((images[i].conj() * a).real, axis=-1)
        norm[i] += posterior.weight[cell] * np.mean(np.abs(a) ** 2, axis=-1)
    for found, naive in ((terms.cross, cross), (terms.norm, norm)):
        np.testing.assert_allclose(found, naive, atol=3e-3 * np.abs(naive).max(), rtol=0)
    np.testing.assert_allclose(terms.power, np.mean(np.abs(images) ** 2, axis=-1), rtol=2e-2)


def test_residuals_of_all_images_add_up_to_that_of_the_sums(setting):
    _, source, space, features, values, posterior = setting(n_images=20)
    terms = image_terms(features, posterior, space, values)
    stats = accumulate(features, posterior, space, 3, source.n_even)
    pooled = residual_power(stats, polar_statistics(stats, space.grid), values)
    np.testing.assert_allclose(terms.residual.mean(axis=0), pooled, rtol=1e-4)


def test_a_class_without_images_has_no_terms(setting):
    _, _, space, features, values, posterior = setting()
    more = np.concatenate([values, values[:1]])  # a class that no cell names
    one, other = (image_terms(features, posterior, space, v) for v in (values, more))
    np.testing.assert_allclose(one.cross, other.cross, rtol=1e-5, atol=1e-6 * np.abs(one.cross).max())
