"""What MAPAligner adds to the alignment kernels: units, defaults, files, and what it says to the user."""

import logging
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem import CTFTable, MAPAligner, ParticleStack, Poses
from sklearn_cryoem.alignment.stream import nats_of_own_part
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import map_aligner
from sklearn_cryoem.estimators.map_aligner import alignment_images
from sklearn_cryoem.physics.rotation import aligned_images

QUICK = {"n_clusters": 3, "n_batches": 4, "max_iter": 2, "tol": 10.0, "random_state": 0}


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 90, box=24, snr=1.0, n_views=3, max_shift=12.0, random_state=0)


@pytest.fixture(scope="module")
def fitted(stack):
    return MAPAligner(**QUICK).fit(stack)


def test_lengths_are_angstrom_where_the_pixel_size_is_known(stack):
    aligner = MAPAligner(mask_diameter=10 * stack.pixel_size, max_shift=2 * stack.pixel_size)
    known = aligner._settings_for(stack)
    assert known.mask_radius_px == pytest.approx(5.0)
    assert known.reach_px == pytest.approx(2.0)
    assert known.max_shift_px == pytest.approx(0.08 * 24)  # one search, which follows the image
    unknown = ParticleStack(stack.read())
    assert MAPAligner(max_shift=1.5)._settings_for(unknown).max_shift_px == pytest.approx(1.5)
    assert MAPAligner()._settings_for(unknown).reach_px == pytest.approx(0.2 * 24)


def test_resolutions_become_fourier_pixels_between_six_and_the_limit():
    stack = ParticleStack(np.random.default_rng(0).normal(size=(4, 64, 64)), pixel_size=4.0)
    settings = MAPAligner(4, max_resolution=16.0)._settings_for(stack)
    assert (settings.k_start, settings.k_limit) == (6.4, 16.0)  # 40 Angstrom
    assert MAPAligner(4, max_resolution=1.0)._settings_for(stack).k_limit == 31.0
    fine = ParticleStack(stack.read(), pixel_size=1.0)
    assert MAPAligner(4)._settings_for(fine).k_start == 6.0


@pytest.mark.parametrize("box", [16, 24, 65])
def test_masks_stay_inside_the_box(box):
    stack = ParticleStack(np.random.default_rng(0).normal(size=(4, box, box)))
    for diameter in (None, 1.0 * box):
        settings = MAPAligner(4, mask_diameter=diameter)._settings_for(stack)
        assert settings.mask_radius_px + settings.mask_edge_px <= box / 2
        source = alignment_images(stack, settings)
        assert source.mask_radius_px + source.mask_edge_px <= box / 2


def test_references_and_batches_grow_with_the_number_of_classes_as_far_as_the_images_go():
    stack = ParticleStack(np.zeros((2000, 16, 16), np.float32))
    settings = [MAPAligner(k)._settings_for(stack) for k in (2, 15, 40, 900)]
    assert [s.n_references for s in settings] == [5, 38, 50, 900]
    assert [s.batch_size for s in settings] == [200, 200, 200, 2000]
    assert MAPAligner(20, n_references=33)._settings_for(stack).n_references == 33
    assert [MAPAligner(k, mirror=True)._settings_for(stack).n_references for k in (15, 30)] == [30, 40]


def test_transform_centres_and_turns_particles_onto_their_class(stack, fitted):
    aligned = fitted.transform(stack)
    averages = fitted.class_averages_[fitted.labels_]
    images = aligned_images(stack.read(), aligned.poses.angle_rad, aligned.poses.shift_px(stack.pixel_size))
    turned = aligned_images(
        stack.read(), aligned.poses.angle_rad + 2.0, aligned.poses.shift_px(stack.pixel_size)
    )
    right, wrong = (np.einsum("nyx,nyx->n", part, averages) for part in (images, turned))
    assert np.mean(right > wrong) > 0.9


@pytest.fixture(scope="module")
def two_sided():
    """Images of one view, every second one seen from the opposite side: mirrored, CTF and all."""
    stack = make_particles("ribosome", 160, box=24, snr=2.0, n_views=1, max_shift=12.0, random_state=0)
    other = np.arange(160) % 2 == 1
    images = stack.read().copy()
    images[other, 1:] = images[other, :0:-1]  # y -> -y about pixel D // 2; row 0 has no twin
    values = {name: getattr(stack.ctf, name) for name in stack.ctf.__dataclass_fields__}
    values["astigmatism_angle_rad"] = np.where(other, -1, 1) * values["astigmatism_angle_rad"]
    return ParticleStack(images, pixel_size=stack.pixel_size, ctf=CTFTable(**values)), other


def test_views_from_opposite_sides_share_a_class_where_mirrors_are_aligned(two_sided):
    stack, other = two_sided
    options = {"n_references": 4, "n_batches": 20, "max_iter": 3, "tol": 10.0, "random_state": 0}
    aligner = MAPAligner(1, mirror=True, **options).fit(stack)
    mirrored = aligner.poses_.mirrored
    agreement = np.mean(mirrored == other)
    assert max(agreement, 1 - agreement) > 0.95
    poses = aligner.transform(stack).poses
    assert np.mean(poses.mirrored == mirrored) > 0.95
    average = aligner.class_averages_[0].ravel()
    undo = stack.read(), poses.angle_rad, poses.shift_px(stack.pixel_size)
    aligned, ignored = aligned_images(*undo, poses.mirrored), aligned_images(*undo)
    one, two, wrong = (
        part.mean(axis=0).ravel() for part in (aligned[other], aligned[~other], ignored[mirrored])
    )
    alike = np.corrcoef([one, two, average, wrong])
    assert alike[0, 1] > 0.95 and alike[2, :2].min() > 0.8  # the average has its CTF undone
    assert alike[3, :2].max() < 0.8, "the test would not notice"
    apart = MAPAligner(2, **options).fit(stack)
    assert not apart.poses_.mirrored.any()
    assert abs(np.mean(apart.labels_ == other) - 0.5) > 0.4, "sides are classes of their own by default"


def test_fitted_attributes_agree_with_each_other(stack, fitted):
    n_pixels = stack.box
    assert fitted.class_averages_.shape == (3, n_pixels, n_pixels)
    assert fitted.cluster_weights_.sum() == pytest.approx(1.0)
    assert fitted.n_features_in_ == n_pixels**2
    assert len(fitted.log_posterior_) == fitted.n_iter_
    history, n_steps = fitted.history_, fitted.n_batches + fitted.n_iter_
    assert all(len(values) == n_steps for values in history.values())
    assert 2 * stack.pixel_size <= fitted.resolution_ <= history["resolution"][-2]  # no finer than was used
    np.testing.assert_array_equal(history["log_evidence"][fitted.n_batches :], fitted.log_posterior_)
    assert history["n_references"].max() <= len(fitted.references_)
    assert np.nanmax(history["changed"][-1:]) < np.nanmax(history["changed"]) <= 1.0
    np.testing.assert_array_equal(fitted.class_sizes_, np.bincount(fitted.labels_, minlength=3))
    assert len(fitted.references_) == len(fitted.reference_class_) >= 3
    assert 1.0 <= fitted.n_effective_clusters_ <= 3.0
    assert np.all((fitted.class_posterior_ > 0) & (fitted.class_posterior_ <= 1 + 1e-6))
    assert np.all((fitted.poses_.angle_rad >= 0) & (fitted.poses_.angle_rad < 2 * np.pi))
    assert np.all(fitted.noise_variance_ > 0)


def test_score_prefers_particles_to_noise_of_the_same_power(stack, fitted):
    images = stack.read()
    noise = np.random.default_rng(0).normal(scale=images.std(), size=images.shape).astype(np.float32)
    pure = ParticleStack(noise, pixel_size=stack.pixel_size, ctf=stack.ctf)
    assert fitted.score(stack) > fitted.score(pure)
    np.testing.assert_allclose(fitted.score_samples(stack).mean(), fitted.score(stack), rtol=1e-6)


def test_files_give_the_same_as_memory(tmp_path):
    options = {"box": 24, "snr": 1.0, "n_views": 3, "max_shift": 12.0, "random_state": 0}
    memory = make_particles("ribosome", 60, **options)
    files = make_particles("ribosome", 60, path=tmp_path / "stack.mrcs", **options)
    assert not files.is_in_memory
    one, two = (MAPAligner(**QUICK).fit(part) for part in (memory, files))
    np.testing.assert_array_equal(one.labels_, two.labels_)
    np.testing.assert_array_equal(one.class_averages_, two.class_averages_)


def test_a_ctf_without_a_pixel_size_is_refused(stack):
    ctf = CTFTable.constant(
        90, defocus_u_angstrom=1e4, defocus_v_angstrom=1e4, astigmatism_angle_rad=0.0, voltage_volts=3e5,
        cs_angstrom=2.7e7, amplitude_contrast=0.1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Give ParticleStack\(pixel_size=...\)"):
        MAPAligner(**QUICK).fit(ParticleStack(stack.read(), ctf=ctf))


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_an_alignment_has_converged_just_where_it_does_not_warn(stack):
    with pytest.warns(ConvergenceWarning, match=r"max_iter=1 while \d+% of the images .* Raise max_iter"):
        assert not MAPAligner(**{**QUICK, "max_iter": 1}).fit(stack).converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MAPAligner(**{**QUICK, "max_iter": 2, "tol": 0.0}).fit(stack).converged_


def test_memory_is_stated_before_work_starts(stack, caplog):
    with caplog.at_level(logging.INFO, logger="sklearn_cryoem"):
        MAPAligner(**QUICK).fit(stack)
    assert "MAPAligner, up to 11 of 11 Fourier pixels, needs about" in caplog.text


# ---------------------------------------------------------------- second runs
@pytest.fixture(scope="module")
def posed(stack):
    """The particles with their true poses, up to 8 degrees and half a pixel off."""
    rng = np.random.default_rng(1)
    n, truth = len(stack), stack.truth
    angle = truth["angle_rad"].to_numpy() + rng.uniform(-0.14, 0.14, n)
    shift = truth[["shift_x", "shift_y"]].to_numpy()
    shift = shift + rng.uniform(-0.5, 0.5, (n, 2)) * stack.pixel_size
    return stack.with_poses(Poses(angle, shift))


def turn_between(one, other):
    return np.abs(np.angle(np.exp(1j * (one - other))))


def test_a_search_round_known_poses_improves_them_and_stays_near(stack, posed):
    near = {"angle_range": 0.2, "max_shift": 1.0 * stack.pixel_size}
    aligner = MAPAligner(**{**QUICK, "n_batches": 10, "max_iter": 3, **near}).fit(posed)
    turn = turn_between(aligner.poses_.angle_rad, posed.poses.angle_rad)
    assert 0.05 < turn.max() <= 0.2 + 1e-9
    true = stack.truth["angle_rad"].to_numpy()
    given = turn_between(posed.poses.angle_rad, true)
    assert np.median(turn_between(aligner.poses_.angle_rad, true)) < 0.6 * np.median(given)
    turn = turn_between(aligner.transform(posed).poses.angle_rad, aligner.poses_.angle_rad)
    np.testing.assert_allclose(turn, 0.0, atol=1e-5)
    np.testing.assert_array_equal(aligner.predict(posed), aligner.labels_)
    # particles without poses are searched everywhere, and these are nowhere else
    everywhere = aligner.transform(stack).poses
    assert np.quantile(turn_between(everywhere.angle_rad, aligner.poses_.angle_rad), 0.9) < 0.01


def test_known_poses_are_not_used_unless_asked_for(stack, posed):
    one, two = (MAPAligner(**QUICK).fit(part) for part in (stack, posed))
    np.testing.assert_array_equal(one.poses_.angle_rad, two.poses_.angle_rad)


def test_a_search_round_known_poses_needs_poses(stack):
    with pytest.raises(ValueError, match=r"stack has none. Give them with stack.with_poses"):
        MAPAligner(angle_range=0.2, **QUICK).fit(stack)


@pytest.mark.parametrize("angle_range", [-0.1, 10.0])  # 10 degrees would be 0.17
def test_a_range_of_angles_is_in_radians_up_to_half_a_turn(posed, angle_range):
    with pytest.raises(ValueError, match="angle_range"):
        MAPAligner(angle_range=angle_range, **QUICK).fit(posed)


def test_a_warm_start_goes_on_where_the_last_fit_ended(stack):
    # at one resolution, since evidence of other rings does not compare
    fixed = {**QUICK, "max_iter": 3, "tol": 0.0, "max_resolution": 45.0}
    aligner = MAPAligner(warm_start=True, **fixed).fit(stack)
    before, references = aligner.log_posterior_, aligner.references_
    aligner.fit(stack)
    # masks and prior spectra change between passes, and images are placed anew: two per cent at most
    assert aligner.log_posterior_[0] > before[-1] - 0.02 * abs(before[-1])
    assert aligner.log_posterior_[0] > before[0]
    assert all(
        np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
        for a, b in zip(aligner.references_, references, strict=True)
    )


def test_a_warm_start_round_known_poses_begins_in_the_frame_of_the_classes(stack, fitted):
    aligner = MAPAligner(**QUICK).fit(stack)
    aligned = stack.with_poses(aligner.poses_)
    aligner.set_params(warm_start=True, angle_range=0.1, max_shift=1.0 * stack.pixel_size).fit(aligned)
    assert adjusted_rand_score(aligner.labels_, fitted.labels_) > 0.9  # the larger of two may come second
    assert np.median(turn_between(aligner.poses_.angle_rad, fitted.poses_.angle_rad)) < 0.06
    assert aligner.log_posterior_[0] > 0.9 * fitted.log_posterior_[-1]


def test_a_warm_start_from_another_box_or_number_of_references_is_refused(stack, monkeypatch):
    monkeypatch.setattr(map_aligner, "IMAGES_PER_REFERENCE", 20)
    aligner = MAPAligner(warm_start=True, **QUICK).fit(stack[:60])
    assert len(aligner.fit(stack).references_) == 3  # by default, so many images have 4
    with pytest.raises(ValueError, match="Bring them to the same box and pixel size"):
        aligner.fit(stack.downsample(20))
    n_references = len(aligner.references_)
    with pytest.raises(ValueError, match=rf"Set n_references={n_references}, or set warm_start=False"):
        aligner.set_params(n_references=n_references + 2).fit(stack)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_classes_owe_to_their_own_images_is_measured_by_the_noise_within_the_mask(monkeypatch):
    images = np.random.default_rng(0).normal(size=(60, 24, 24))
    used = []

    def seen(*given):
        used.append(given[-1])
        return nats_of_own_part(*given)

    monkeypatch.setattr(map_aligner, "nats_of_own_part", seen)
    model = MAPAligner(2, mask_diameter=14.0, n_batches=2, max_iter=1, random_state=0).fit(images)
    settings = model._settings_for(ParticleStack(images))
    fraction = alignment_images(ParticleStack(images), settings).noise_fraction
    assert 0.1 < fraction < 0.6
    assert used == [fraction]
