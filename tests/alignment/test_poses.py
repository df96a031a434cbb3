import numpy as np
import pytest
from scipy.stats import norm as gaussian

from sklearn_cryoem.alignment.expectation import expect
from sklearn_cryoem.alignment.frames import to_image_frame
from sklearn_cryoem.alignment.maximisation import own_nats
from sklearn_cryoem.alignment.model import log_noise_likelihood
from sklearn_cryoem.alignment.poses import ImagePoses, class_posterior, find_poses, without_own
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.physics.polar import polar_transform
from sklearn_cryoem.physics.rotation import aligned_images


def angle_errors(found, true):
    """Absolute differences of angles in degrees."""
    return np.degrees(np.abs(np.angle(np.exp(1j * (found - true)))))


@pytest.fixture
def found(rng, make_particles, make_settings, make_model, references):
    """Particles and their poses under the true references."""

    def find(n_images=40, *, noise=0.15, sigma=1.0, refine=True, **options):
        particles = make_particles(rng, n_images, noise=noise, **options)
        model = make_model(references, noise=max(noise, 0.1) ** 2, k_max=11, shift_sigma_px=sigma)
        settings = make_settings()
        return particles, find_poses(particles.source(), model, settings, refine=refine)

    return find


@pytest.mark.parametrize("split_angstrom", [None, 3000.0])
def test_poses_are_found_below_the_steps_of_the_search(found, split_angstrom):
    particles, poses = found(split_angstrom=split_angstrom, sigma=50.0)
    right = poses.label == particles.kind
    assert right.mean() > 0.9
    angle = angle_errors(poses.angle_rad, particles.angle_rad)[right]
    shift = np.hypot(*(poses.shift_px - particles.shift_px).T)[right]
    # the search goes in steps of 5 degrees and 1 pixel
    assert np.median(angle) < 1.2, f"median error {np.median(angle):.2f} degrees"
    assert np.median(shift) < 0.15, f"median error {np.median(shift):.3f} pixels"
    assert np.all((poses.angle_rad >= 0) & (poses.angle_rad < 2 * np.pi))


@pytest.mark.parametrize("split_angstrom", [None, 3000.0, 6000.0])
def test_poses_of_images_without_noise_are_exact(found, split_angstrom):
    # the shift moves an image out of its mask, and astigmatism turns with it: none of that may bias the pose
    particles, poses = found(noise=0.0, split_angstrom=split_angstrom, sigma=50.0, max_shift=0.7)
    np.testing.assert_array_equal(poses.label, particles.kind)
    angle = angle_errors(poses.angle_rad, particles.angle_rad)
    shift = np.hypot(*(poses.shift_px - particles.shift_px).T)
    assert np.median(angle) < 0.1, f"median error {np.median(angle):.3f} degrees"
    assert np.median(shift) < 0.02, f"median error {np.median(shift):.4f} pixels"


def test_refining_improves_on_the_grid(found):
    errors = []
    for refine in (False, True):
        particles, poses = found(n_images=80, noise=0.1, kinds=(0, 1), sigma=50.0, refine=refine)
        errors.append(
            (
                np.median(angle_errors(poses.angle_rad, particles.angle_rad)),
                np.median(np.hypot(*(poses.shift_px - particles.shift_px).T)),
            )
        )
    (angle, shift), (fine_angle, fine_shift) = errors
    assert fine_angle < 0.6 * angle and fine_shift < 0.5 * shift


def test_undoing_the_poses_brings_the_images_onto_their_class(found, references):
    particles, poses = found(noise=0.0, split_angstrom=None, sigma=50.0)
    aligned = aligned_images(particles.images, poses.angle_rad, poses.shift_px)
    for image, cluster in zip(aligned, poses.label, strict=True):
        assert np.corrcoef(image.ravel(), references[cluster].ravel())[0, 1] > 0.99


def test_a_narrow_shift_prior_draws_the_shifts_to_the_centre(
    make_particles, make_settings, make_model, references
):
    particles = make_particles(np.random.default_rng(5), 30, noise=0.5)
    lengths = []
    for sigma in (50.0, 0.3):
        model = make_model(references, noise=0.25, k_max=8, shift_sigma_px=sigma)
        poses = find_poses(particles.source(), model, make_settings())
        lengths.append(np.hypot(*poses.shift_px.T).mean())
    assert lengths[1] < 0.7 * lengths[0]


def test_poses_do_not_depend_on_the_number_of_workers(
    make_particles, make_settings, make_model, references, by_one_and_two
):
    particles = make_particles(np.random.default_rng(1), 220)  # more than one task
    model = make_model(references, k_max=6)
    one, two = by_one_and_two(particles.source, lambda s: find_poses(s, model, make_settings()))
    for name in ImagePoses.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_shift_of_the_image_is_the_shift_of_the_class_turned_back():
    # psi = 90 degrees: what lies along +x of the class lies along -y (up) of the image
    turned = to_image_frame(np.array([np.pi / 2, 0.0]), np.array([[2.0, 0.0], [2.0, 3.0]]))
    np.testing.assert_allclose(turned, [[0.0, -2.0], [2.0, 3.0]], atol=1e-12)


def test_class_posterior_sums_over_shifts_and_angles(
    rng, make_particles, make_settings, make_model, references
):
    particles = make_particles(rng, 10, noise=2.0)
    source, space, model = (
        particles.source(),
        make_settings().space(32, 8.0),
        make_model(references, noise=4.0),
    )
    features = source(np.arange(10), space.n_rings, space.n_orders)
    bank = reference_bank(polar_transform(references, space.grid), space, source.n_even)
    precision = np.full(space.n_rings, 0.25, np.float32)
    posterior = expect(features, precision, bank, space, model.log_prior(space))
    group_of = np.array([1, 0, 1])  # classes of the three references
    table = np.zeros((10, 2))
    np.add.at(table, (posterior.image, group_of[posterior.row // space.n_shifts]), posterior.weight)
    for cluster in range(2):
        chosen = np.full(10, cluster)
        found = class_posterior(posterior, group_of, chosen, space.n_shifts)
        np.testing.assert_allclose(found, table[:, cluster], rtol=1e-5)
    assert 0.05 < table.min(axis=1).max(), "too certain a posterior to test sums"


def test_likelihood_of_noise_is_gaussian_with_one_term_a_coefficient(rng):
    noise = np.array([2.0, 0.5, 1.2])
    n_coefficients = 2 * np.pi * np.arange(1, 4)  # real numbers on each ring, by area
    power = rng.uniform(0.1, 3.0, (5, 3)).astype(np.float32)
    # log N(y | 0, s2) is linear in y^2: the mean square of a ring counts as often as the ring has numbers
    each = gaussian.logpdf(np.sqrt(power), scale=np.sqrt(noise))
    np.testing.assert_allclose(log_noise_likelihood(power, noise, 1.0), each @ n_coefficients, rtol=1e-6)
    finer = log_noise_likelihood(power, noise, 1.0, n_ignored=1)  # Eq. (4.21)
    np.testing.assert_allclose(finer, each[:, 1:] @ n_coefficients[1:], rtol=1e-6)


def test_a_mask_leaves_as_many_degrees_of_freedom_as_it_leaves_noise(rng):
    # the derivative with respect to log s2 vanishes where the power is that of the masked noise
    noise, fraction = np.array([2.0, 0.5, 1.2]), 0.4
    power = (fraction * noise)[None].astype(np.float32)
    here, low, high = (log_noise_likelihood(power, noise * f, fraction)[0] for f in (1.0, 0.99, 1.01))
    assert here > low and here > high


def test_what_an_image_owes_to_its_part_in_a_reference_is_taken_off():
    """Eq. (4.20): with flat CTFs and no prior each of n images has 1 / n of every coefficient."""
    radius = np.arange(1.0, 6.0)
    nats = own_nats(np.full((2, 5), [[4.0], [12.0]]), np.zeros((2, 5)), 16.0, radius)  # c = 1
    np.testing.assert_allclose(nats, 2 * np.pi * radius.sum() / [4.0, 12.0])
    posterior = np.array([0.0, 0.5, 1.0 - 1e-9, 1.0])
    np.testing.assert_allclose(without_own(posterior, np.log(1e9)), [0.0, 1e-9, 0.5, 1.0], rtol=1e-5)
