"""Features of a stack against the plain formulas, and what streaming may not change."""

import threading
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import CTFTable, ParticleStack, Poses, SMLClusterer, set_memory_limit
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.manifold.blocks import in_turn
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.expectation import Matcher, sweep
from sklearn_cryoem.particles import features
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import fourier_features, half_plane
from sklearn_cryoem.physics.masks import soft_disc


def everything(blocks, n_shells=None):
    n_shells = blocks.layout.n_shells if n_shells is None else n_shells
    parts = [blocks.load(index, n_shells) for index in range(len(blocks))]
    norm = np.concatenate([part.norm for part in parts])
    return np.concatenate([part.data for part in parts]), norm, np.concatenate([part.power for part in parts])


@pytest.fixture(scope="module")
def one_view():
    """Noise-free images of one view: turned, shifted, with strong and varied astigmatism."""
    stack = make_particles(
        "ribosome", 100, box=48, snr=None, n_views=1, astigmatism=8000.0, max_shift=25.0, random_state=0
    )
    return aligned_to_truth(stack)


def misfit(stack):
    """Share of the power that one common, CTF-modulated image leaves unexplained, low frequencies alone."""
    blocks = FeatureBlocks(stack, half_plane(48, 14))
    data, norm, power = everything(blocks)
    full = norm[:, blocks.layout.norm_index].astype(float)
    common = data.sum(axis=0) / full.sum(axis=0)
    return 1.0 - (2 * data * common - full * common**2).sum() / power.sum()


def test_pose_and_astigmatism_make_all_images_of_a_view_one(one_view):
    assert misfit(one_view) < 0.02


@pytest.mark.parametrize("fault", ["astigmatism the other way", "no shift", "angle the other way"])
def test_a_wrong_convention_shows(one_view, fault):
    poses, ctf = one_view.poses, one_view.ctf
    if fault == "no shift":
        wrong = one_view.with_poses(type(poses)(poses.angle_rad, 0 * poses.shift))
    elif fault == "angle the other way":
        wrong = one_view.with_poses(type(poses)(-poses.angle_rad, poses.shift))
    else:  # evaluate() adds psi: this leaves a0 - psi
        values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
        values["astigmatism_angle_rad"] = ctf.astigmatism_angle_rad - 2 * poses.angle_rad
        wrong = one_view.with_ctf(CTFTable(**values))
    assert misfit(wrong) > 3 * misfit(one_view)


def flipped(stack, every=2):
    """The same particles, every second image mirrored where it lies (y -> -y about D // 2), CTF and all."""
    mirrored = np.arange(len(stack)) % every == 0
    images, poses = stack.read().copy(), stack.poses
    images[mirrored, 1:] = images[mirrored, :0:-1]  # row 0 of an even box has no twin
    values = {name: getattr(stack.ctf, name) for name in stack.ctf.__dataclass_fields__}
    sign = np.where(mirrored, -1.0, 1.0)
    values["astigmatism_angle_rad"] = sign * stack.ctf.astigmatism_angle_rad
    shift = poses.shift * np.column_stack([np.ones(len(stack)), sign])
    return ParticleStack(
        images, pixel_size=stack.pixel_size, ctf=CTFTable(**values),
        poses=Poses(poses.angle_rad, shift, mirrored),
    )  # fmt: skip


def test_mirrored_images_of_a_view_are_one_with_the_others(one_view):
    mirrored = flipped(one_view)
    assert misfit(mirrored) < 0.02
    data, norm, _ = everything(FeatureBlocks(one_view, half_plane(48, 14)))
    same, same_norm, _ = everything(FeatureBlocks(mirrored, half_plane(48, 14)))
    np.testing.assert_allclose(same_norm, norm, atol=1e-4)
    np.testing.assert_allclose(same, data, atol=0.02 * np.abs(data).max())


@pytest.mark.parametrize("fault", ["no mirror", "astigmatism not mirrored"])
def test_mirrors_count_for_the_image_and_for_its_ctf(one_view, fault):
    stack = flipped(one_view)
    poses, ctf = stack.poses, stack.ctf
    if fault == "no mirror":
        wrong = stack.with_poses(Poses(poses.angle_rad, poses.shift))
    else:  # evaluate() takes the angle the other way where mirrored: this undoes it
        values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
        values["astigmatism_angle_rad"] = one_view.ctf.astigmatism_angle_rad
        wrong = stack.with_ctf(CTFTable(**values))
    assert misfit(wrong) > 3 * misfit(stack)


def test_without_pose_and_ctf_features_are_those_of_the_masked_image():
    images = np.random.default_rng(0).standard_normal((5, 24, 24)).astype(np.float32)
    plane = half_plane(24)
    blocks = FeatureBlocks(ParticleStack(images), plane, mask_diameter=18.0)
    data, norm, power = everything(blocks)
    disc = soft_disc(24, 9.0, 2.0)  # the edge lies outside of the diameter
    background = (images * (1 - disc)).sum(axis=(1, 2)) / (1 - disc).sum()
    masked = (images - background[:, None, None]) * disc
    np.testing.assert_allclose(data, fourier_features(masked, plane).view(np.float32), atol=1e-5)
    assert (norm == 1).all()
    for shell in range(blocks.layout.n_shells):
        np.testing.assert_allclose(
            power[:, shell], (data[:, blocks.layout.shell == shell] ** 2).sum(1), rtol=1e-5
        )


def test_white_noise_keeps_its_variance_and_the_layout_says_what_the_mask_leaves():
    images = np.random.default_rng(0).standard_normal((400, 32, 32)).astype(np.float32)
    blocks = FeatureBlocks(ParticleStack(images), half_plane(32), mask_diameter=24.0)
    data, _, _ = everything(blocks)
    assert data.var() == pytest.approx(blocks.layout.information, rel=0.03)
    assert blocks.layout.information == pytest.approx(np.pi * (12 + 3 / 8 * 2) ** 2 / 32**2, rel=0.02)


def test_the_mask_follows_the_particle_off_the_centre():
    images = np.zeros((1, 32, 32), np.float32)
    images[0, 16, 26] = 1.0  # 10 pixels to the right of the centre
    centred = ParticleStack(images, poses=None)
    shifted = centred.with_poses(Poses([0.0], [[-10.0, 0.0]]))
    plane = half_plane(32)
    assert np.abs(everything(FeatureBlocks(centred, plane, 12.0))[0]).max() < 0.02
    data = everything(FeatureBlocks(shifted, plane, 12.0))[0].view(np.complex64)
    np.testing.assert_allclose(data, np.sqrt(2) / 32, atol=2e-3)  # a point at the centre: flat, real


def test_in_a_window_images_keep_what_the_ctf_spreads_and_the_layout_tells_the_mask(one_view):
    plane, diameter = half_plane(48), 0.6 * 48 * one_view.pixel_size
    tight = FeatureBlocks(one_view, plane, diameter)
    window, wide = FeatureBlocks(one_view, plane, diameter, True), FeatureBlocks(one_view, plane)
    for mine, other in zip(everything(window), everything(wide), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert window.layout.information == wide.layout.information
    assert window.layout.diameter == pytest.approx(tight.layout.diameter)
    assert window.layout.truncate(5).support is window.layout.support and wide.layout.support is None
    plain = one_view.with_ctf(None)  # nothing is spread: images are masked as tightly as they can be
    blocks = [FeatureBlocks(plain, plane, diameter, in_window) for in_window in (False, True)]
    assert blocks[1].layout.support is None
    np.testing.assert_array_equal(everything(blocks[0])[0], everything(blocks[1])[0])


def test_classes_under_a_tight_mask_do_not_follow_defocus():
    axis = 5.0 * (np.arange(48) - 24)
    radius = np.sqrt(sum(np.square(np.meshgrid(axis, axis, axis))))
    shell = Volume(np.exp(-0.5 * ((radius - 50.0) / 8.0) ** 2), 5.0)  # all views are the same
    stack = make_particles(shell, 400, box=48, pixel_size=5.0, snr=1.0, defocus=(8e3, 3e4), random_state=0)
    stack = aligned_to_truth(stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = SMLClusterer((5, 5), mask_diameter=135.0, max_iter=12, random_state=0).fit_predict(stack)
    defocus = stack.ctf.defocus_u_angstrom
    sizes = np.bincount(labels, minlength=25)
    means = np.bincount(labels, defocus, minlength=25) / np.maximum(sizes, 1)
    share = (sizes * (means - defocus.mean()) ** 2).sum() / (400 * defocus.var())
    chance = (np.count_nonzero(sizes) - 1) / 399
    assert share < 2 * chance, (
        f"{share:.3f} of the variance of defocus lies between classes, chance {chance:.3f}"
    )


def test_isotropic_ctfs_need_one_column_a_radius_and_change_nothing_else(one_view):
    ctf = one_view.ctf
    values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
    values["defocus_v_angstrom"] = ctf.defocus_u_angstrom
    isotropic = one_view.with_ctf(CTFTable(**values))
    values["defocus_v_angstrom"] = (
        ctf.defocus_u_angstrom - 20.0
    )  # just beyond the tolerance: the general path
    general = one_view.with_ctf(CTFTable(**values))
    fast, slow = FeatureBlocks(isotropic, half_plane(48)), FeatureBlocks(general, half_plane(48))
    assert fast.layout.n_norms < slow.layout.n_norms / 3
    (data, norm, _), (data_slow, norm_slow, _) = everything(fast), everything(slow)
    np.testing.assert_allclose(
        norm[:, fast.layout.norm_index], norm_slow[:, slow.layout.norm_index], atol=5e-3
    )
    np.testing.assert_allclose(data, data_slow, atol=5e-3 * np.abs(data_slow).max())


def test_negligible_astigmatism_is_taken_at_its_mean_defocus(one_view, monkeypatch):
    ctf = one_view.ctf
    values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
    values["defocus_v_angstrom"] = ctf.defocus_u_angstrom - 3.0
    stack = one_view.with_ctf(CTFTable(**values))
    fast = FeatureBlocks(stack, half_plane(48))
    monkeypatch.setattr("sklearn_cryoem.particles.features.NEGLIGIBLE_PHASE", -1.0)
    general = FeatureBlocks(stack, half_plane(48))
    assert fast.layout.n_norms < general.layout.n_norms / 3
    norm, norm_general = everything(fast)[1], everything(general)[1]
    np.testing.assert_allclose(
        norm[:, fast.layout.norm_index], norm_general[:, general.layout.norm_index], atol=2e-3
    )


def test_the_path_is_chosen_by_the_finest_frequency_in_use(one_view):
    ctf = one_view.ctf
    values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
    values["defocus_v_angstrom"] = ctf.defocus_u_angstrom - 20.0
    stack = one_view.with_ctf(CTFTable(**values))
    n_norms = [FeatureBlocks(stack, half_plane(48, k_max)).layout.n_norms for k_max in (8, 23)]
    n_coefficients = [half_plane(48, k_max).n_coefficients for k_max in (8, 23)]
    assert n_norms[0] < n_coefficients[0] and n_norms[1] == n_coefficients[1]


@pytest.mark.parametrize("with_ctf", [True, False])
def test_without_astigmatism_both_paths_fit_the_same_model(with_ctf, monkeypatch):
    stack = make_particles("ribosome", 150, box=24, snr=0.5, n_views=6, astigmatism=0.0, random_state=0)
    stack = aligned_to_truth(stack if with_ctf else stack.with_ctf(None))
    fast = SMLClusterer((4, 3), max_iter=10, tol=0.0, random_state=0)
    general = clone(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fast.fit(stack)
        if with_ctf:
            monkeypatch.setattr("sklearn_cryoem.particles.features.NEGLIGIBLE_PHASE", -1.0)
        else:  # c = 1 in so many words
            monkeypatch.setattr(CTFTable, "evaluate", lambda self, s, *_: np.ones((len(self), len(s)), "f4"))
            ones = CTFTable.constant(
                len(stack), defocus_u_angstrom=2e4, defocus_v_angstrom=1e4, astigmatism_angle_rad=0.0,
                voltage_volts=3e5, cs_angstrom=0.0, amplitude_contrast=0.0,
            )  # fmt: skip
            stack = stack.with_ctf(ones)
        general.fit(stack)
    both = min(fast.n_iter_, general.n_iter_)  # either may end one step earlier
    np.testing.assert_allclose(fast.log_posterior_[:both], general.log_posterior_[:both], rtol=1e-6)
    assert np.mean(fast.labels_ == general.labels_) > 0.99
    scale = np.abs(general.cluster_centers_).max()
    np.testing.assert_allclose(fast.cluster_centers_, general.cluster_centers_, atol=2e-3 * scale)


def test_blocks_of_large_images_hold_fewer_of_them(monkeypatch):
    images = np.random.default_rng(0).standard_normal((100, 48, 48)).astype(np.float32)
    monkeypatch.setattr("sklearn_cryoem.particles.features.BLOCK_BYTES", 2**19)
    blocks = FeatureBlocks(ParticleStack(images), half_plane(48))
    sizes = [len(blocks.load(index, 3)) for index in range(len(blocks))]
    assert sum(sizes) == 100 and sizes[0] % 2 == 0
    assert sizes[0] * 4 * blocks.layout.n_features <= 2**19 < (sizes[0] + 2) * 4 * blocks.layout.n_features


@pytest.mark.parametrize("ctf", ["none", "isotropic", "astigmatic"])
def test_a_column_of_the_norms_never_spans_two_shells(one_view, ctf):
    values = {name: getattr(one_view.ctf, name) for name in one_view.ctf.__dataclass_fields__}
    values["defocus_v_angstrom"] = values["defocus_u_angstrom"]
    stack = {"none": one_view.with_ctf(None), "isotropic": one_view.with_ctf(CTFTable(**values))}
    layout = FeatureBlocks(stack.get(ctf, one_view), half_plane(one_view.box)).layout
    shells = [np.unique(layout.shell[layout.norm_index == column]) for column in range(layout.n_norms)]
    assert all(len(of_column) == 1 for of_column in shells)


def test_cropping_costs_a_small_share_of_the_noise():
    stack = aligned_to_truth(make_particles("ribosome", 24, box=96, snr=0.05, max_shift=10.0, random_state=0))
    plane = half_plane(96)
    full = everything(
        FeatureBlocks(stack, plane, 0.7 * 96 * stack.pixel_size, cache_bytes=2**30), n_shells=12
    )
    cropped = everything(FeatureBlocks(stack, plane, 0.7 * 96 * stack.pixel_size, cache_bytes=0), n_shells=12)
    error = np.sqrt(np.mean((full[0] - cropped[0]) ** 2) / np.mean(full[0] ** 2))
    assert error < 0.02, f"cropping leaves an error of {error:.3g}"


@pytest.mark.parametrize("n_shells", [3, 8, 15])
def test_cached_and_streamed_blocks_agree(one_view, n_shells):
    plane = half_plane(48, 15)
    cached = FeatureBlocks(one_view, plane, block_size=32)
    streamed = FeatureBlocks(one_view, plane, block_size=32, cache_bytes=0)
    assert len(cached) == 4 and cached.cache_bytes > 0 == streamed.cache_bytes
    for mine, other in zip(everything(cached, n_shells), everything(streamed, n_shells), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.02 * np.abs(mine).max())


def test_the_cache_stays_within_its_bytes_and_does_not_travel(one_view):
    blocks = FeatureBlocks(one_view, half_plane(48), block_size=10, cache_bytes=400_000)
    everything(blocks)
    held = sum(block.data.nbytes + block.norm.nbytes for block in blocks._cache.values())
    assert 0 < held <= 400_000
    joblib.hash(blocks)
    assert blocks.__getstate__()["_cache"] == {}


def test_the_lowest_memory_limit_leaves_every_fold_images(one_view):
    set_memory_limit(1.0)
    try:
        blocks = FeatureBlocks(one_view, half_plane(48))
    finally:
        set_memory_limit(None)
    assert [len(blocks.load(index, 2)) for index in range(len(blocks))] == [64, 36]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plane": half_plane(32)}, r"box of 48 pixels, expected 32. Use stack.downsample\(32\)"),
        ({"mask_diameter": 1e6}, "(the box).. Give a little more than the particle's diameter"),
        ({"mask_diameter": 1e-3}, "Give a little more than the particle's diameter"),
    ],
)
def test_what_does_not_fit_is_refused(one_view, change, message):
    with pytest.raises(ValueError, match=message):
        FeatureBlocks(one_view, **{"plane": half_plane(48), **change})


def test_a_ctf_needs_a_pixel_size(one_view):
    stack = ParticleStack(one_view.read(), ctf=one_view.ctf)
    with pytest.raises(ValueError, match="Give pixel_size in Angstrom"):
        FeatureBlocks(stack, half_plane(48))


class SlowSource:
    """Images on a slow disk, which tells which rows it was asked for, and by whom."""

    is_in_memory = False

    def __init__(self, images):
        self.images, self.box, self.nbytes = images, images.shape[1], images.nbytes
        self.asked, self.arrived = [], threading.Condition()

    def __len__(self):
        return len(self.images)

    def read(self, rows=None, *, check=True):
        with self.arrived:
            self.asked.append((rows.start, rows.stop, threading.get_ident()))
            self.arrived.notify_all()
        return self.images[rows]

    def take(self, rows):
        return SlowSource(self.images[rows])

    def describe(self):
        return "on a slow disk"

    def locate(self, row):
        return f"image {row}"


@pytest.mark.parametrize("parts_ahead", [1, 32])
def test_images_of_the_next_block_are_read_while_one_is_worked_on(one_view, monkeypatch, parts_ahead):
    monkeypatch.setattr(features, "PIXELS_AT_ONCE", 10 * 48**2)
    monkeypatch.setattr(features, "AHEAD_BYTES", 4 * parts_ahead * features.PIXELS_AT_ONCE)
    source = SlowSource(one_view.read())
    slow = ParticleStack(source, pixel_size=one_view.pixel_size, ctf=one_view.ctf, poses=one_view.poses)
    blocks, same = (FeatureBlocks(s, half_plane(48), block_size=20, cache_bytes=0) for s in (slow, one_view))
    for index, block in enumerate(in_turn(blocks, range(len(blocks)), 9)):
        expected = same.load(index, 9)
        for name in ("data", "norm", "power"):
            np.testing.assert_array_equal(getattr(block, name), getattr(expected, name))
        n_read = min(20 * (index + 1) + 10 * min(parts_ahead, 2), len(slow))

        def is_there(n_read=n_read):
            return max(stop for _, stop, _ in source.asked) >= n_read

        with source.arrived:
            assert source.arrived.wait_for(is_there, 30)
    rows = sorted((start, stop) for start, stop, _ in source.asked)
    assert rows == [(start, start + 10) for start in range(0, 100, 10)]  # each once
    readers = {reader for _, _, reader in source.asked}
    assert len(readers) == (2 if parts_ahead == 1 else 1) and len(readers - {threading.get_ident()}) == 1


@pytest.mark.parametrize("kind", ["astigmatic", "isotropic", "no CTF", "one c^2 a shell"])
def test_sums_with_mirrors_are_those_of_the_images_and_of_their_mirror_images(one_view, kind):
    stack = one_view[:30] if kind != "no CTF" else one_view[:30].with_ctf(None)
    if kind == "isotropic":
        same = replace(stack.ctf, defocus_v_angstrom=stack.ctf.defocus_u_angstrom)
        stack = stack.with_ctf(same)
    poses = stack.poses
    mirrored = stack.with_poses(Poses(-poses.angle_rad, poses.shift, np.ones(30, dtype=bool)))
    plain, other = (FeatureBlocks(some, half_plane(48, 14), block_size=16) for some in (stack, mirrored))
    both = plain.with_mirrors()
    if kind == "one c^2 a shell":
        plain, other, both = (ShellNorms(blocks) for blocks in (plain, other, both))
    layout = plain.layout.truncate(7)
    templates = everything(plain, 7)[0][:5]
    folds = [face.folds(4) for face in plain.load(0, 7).faces(both.layout.truncate(7))]
    np.testing.assert_array_equal(*folds)  # no image helps to make a template that its mirror image meets
    matcher = Matcher.of(templates, np.full(layout.n_shells, 30.0), layout)
    one, two, found = (sweep(blocks, [matcher], "halves", n_shells=9) for blocks in (plain, other, both))
    for name in ("numerator", "denominator", "power", "mass", "log_evidence", "n_samples"):
        wanted = getattr(one, name) + getattr(two, name)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(getattr(found, name) / scale, wanted / scale, atol=2e-4, err_msg=name)
    np.testing.assert_array_equal(np.concatenate(found.labels), np.concatenate(one.labels))
    assert (np.concatenate(two.labels) != np.concatenate(one.labels)).any()
