"""Simulated stacks: the noise and signal they promise, the truth they return, same bits for any n_jobs."""

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import (
    aligned_to_truth,
    make_particles,
    make_ribosome_phantom,
    make_rings,
    project,
    true_poses,
    volume_of_blobs,
)
from sklearn_cryoem.datasets.draws import JUNK_KINDS, coloured_power, draw_noise, uniform_directions
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.physics.fourier import fourier_features, half_plane
from sklearn_cryoem.physics.images import radial_power
from sklearn_cryoem.physics.rotation import aligned_features

SMALL = {"n_samples": 300, "box": 32, "random_state": 0}


@pytest.mark.parametrize("snr", [0.05, 1.0])
def test_noise_has_variance_one_and_signal_variance_snr(snr, rng):
    seed = int(rng.integers(1000))
    clean = make_particles(**{**SMALL, "box": 24, "random_state": seed}, snr=None).read()
    noisy = make_particles(**{**SMALL, "box": 24, "random_state": seed}, snr=snr).read()
    signal = clean * np.sqrt(snr)  # without noise the signal has variance 1
    noise = noisy - signal
    assert clean[:256].var(axis=(1, 2)).mean() == pytest.approx(1.0, rel=1e-3)
    assert noise.var() == pytest.approx(1.0, abs=0.02)
    assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(noise.ravel(), signal.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("box", [31, 32])
def test_coloured_noise_has_the_documented_spectrum(box, rng):
    noise = draw_noise(rng, 400, box, coloured_power(box))
    assert noise.var() == pytest.approx(1.0, abs=0.03)
    ring = np.arange(1, box // 2)
    shape = 0.5 + 3.0 * np.exp(-ring / box / 0.06)
    observed = radial_power(noise).mean(axis=0)[ring]
    ratio = observed / shape
    np.testing.assert_allclose(ratio / ratio.mean(), 1.0, atol=0.15)
    assert coloured_power(box)[0, 0] / coloured_power(box)[box // 2, -1] > 5
    stack = make_particles(n_samples=50, box=box, noise="coloured", snr=1e-4, random_state=0)
    power = radial_power(stack.read()).mean(axis=0)
    assert power[1] > 3 * power[box // 2 - 1]


@pytest.mark.parametrize(
    "options", [{}, {"junk_fraction": 0.3}, {"noise": "coloured", "n_views": 5, "max_shift": 20.0}]
)
def test_same_bits_for_any_number_of_workers_and_the_same_seed(options, monkeypatch):
    monkeypatch.setattr("sklearn_cryoem.datasets.simulate.PIXELS_A_BLOCK", 8 * 32**2)  # eight blocks
    few = {**SMALL, "n_samples": 60, **options}
    one = make_particles(**few, n_jobs=1)
    two = make_particles(**few, n_jobs=2)
    np.testing.assert_array_equal(one.read(), two.read())
    assert one.truth.equals(two.truth)
    other = make_particles(**{**few, "random_state": 1})
    assert not np.array_equal(one.read(), other.read())


def test_the_global_random_state_is_left_alone():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_particles(n_samples=3, box=16, random_state=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_truth_has_the_columns_and_ranges_it_promises():
    stack = make_particles(**{**SMALL, "n_samples": 600}, max_shift=12.0, snr=0.1)
    truth = stack.truth
    assert list(truth.columns) == [
        "view_x", "view_y", "view_z", "view", "rot_rad", "tilt_rad", "angle_rad", "shift_x", "shift_y",
        "structure", "is_junk", "junk_kind",
    ]  # fmt: skip
    assert isinstance(stack, ParticleStack) and stack.poses is None and stack.is_in_memory
    directions = truth[["view_x", "view_y", "view_z"]].to_numpy()
    rot, tilt = truth["rot_rad"], truth["tilt_rad"]
    from_angles = np.column_stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)])
    np.testing.assert_allclose(directions, from_angles, atol=1e-12)
    assert np.abs(directions.mean(axis=0)).max() < 0.12, "directions are not uniform"
    assert np.abs((directions**2).mean(axis=0) - 1 / 3).max() < 0.06
    length = np.hypot(truth["shift_x"], truth["shift_y"])
    assert length.max() <= 12.0 and np.mean(length < 6.0) == pytest.approx(0.25, abs=0.07)
    assert np.histogram(truth["angle_rad"], 4, (0, 2 * np.pi))[0].min() > 100
    assert (truth["view"] == -1).all() and not truth["is_junk"].any()
    ctf = stack.ctf
    mean = 0.5 * (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom)
    assert mean.min() > 10000 and mean.max() < 25000
    split = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    assert split.min() >= 0 and 400 < split.max() <= 500


def test_fixed_views_are_spread_over_the_sphere_and_shared():
    stack = make_particles(**SMALL, n_views=20, snr=None, in_plane=False, defocus=None)
    truth = stack.truth
    assert set(truth["view"]) <= set(range(20)) and stack.ctf is None
    directions = truth.groupby("view")[["view_x", "view_y", "view_z"]]
    assert directions.nunique().to_numpy().max() == 1
    images = stack.read()
    first, second = np.flatnonzero(truth["view"] == truth["view"].mode()[0])[:2]
    np.testing.assert_allclose(images[first], images[second], atol=1e-3)
    spread = uniform_directions(20, np.random.default_rng(0))
    cosine = spread @ spread.T - 2 * np.eye(20)
    assert np.degrees(np.arccos(cosine.max(axis=1))).min() > 25  # 20 points could be at most 47 degrees apart
    np.testing.assert_allclose(np.linalg.norm(spread, axis=1), 1.0)


def test_images_are_the_ctf_times_the_projection():
    volume = make_ribosome_phantom(48, 7.5)
    stack = make_particles(volume, 12, box=48, snr=None, max_shift=15.0, astigmatism=4000.0, random_state=2)
    truth = stack.truth
    shift_px = truth[["shift_x", "shift_y"]].to_numpy() / 7.5
    clean = project(volume, truth["rot_rad"], truth["tilt_rad"], truth["angle_rad"], shift_px)
    plane = half_plane(48)
    ctf = stack.ctf.evaluate(plane.radius / (48 * 7.5), plane.azimuth)
    expected = fourier_features(clean, plane) * ctf
    observed = fourier_features(stack.read(), plane)
    scale = np.vdot(expected, observed).real / np.vdot(expected, expected).real
    assert scale > 0, "particles must be white on black"
    assert np.linalg.norm(observed - scale * expected) < 1e-3 * np.linalg.norm(observed)


def test_aligned_astigmatic_images_average_to_the_projection():
    """Catches a wrong sign in Eq. (1.6), in the angle or in the shift: the averages would be blurred."""
    rng = np.random.default_rng(0)
    blobs = np.column_stack(
        [rng.uniform(-35, 35, (25, 3)), rng.uniform(3.5, 6, (25, 1)), rng.uniform(0.5, 1.5, (25, 1))]
    )
    volume = volume_of_blobs(blobs, 64, 2.5)
    stack = aligned_to_truth(
        make_particles(
            volume,
            80,
            box=64,
            snr=10.0,
            n_views=1,
            max_shift=15.0,
            defocus=(8000.0, 14000.0),
            astigmatism=8000.0,
            random_state=0,
        )
    )
    plane = half_plane(64)
    frequency = plane.radius / (64 * 2.5)
    poses, truth = stack.poses, stack.truth
    expected = fourier_features(project(volume, truth["rot_rad"][:1], truth["tilt_rad"][:1]), plane)[0]

    def agreement(angle_sign=1, shift_sign=1, ctf_sign=1):
        y = aligned_features(
            stack.read(), plane, angle_sign * poses.angle_rad, shift_sign * poses.shift_px(2.5)
        )
        c = stack.ctf.evaluate(frequency, plane.azimuth, ctf_sign * poses.angle_rad)
        average = (c * y).sum(axis=0) / ((c**2).sum(axis=0) + 1.0)  # Eq. (3.6)
        kept = (plane.shell > 8) & (plane.shell <= 16)  # 20 to 10 Angstrom: coarser hardly feels astigmatism
        return np.vdot(average[kept], expected[kept]).real / np.sqrt(
            np.vdot(average[kept], average[kept]).real * np.vdot(expected[kept], expected[kept]).real
        )

    right = agreement()
    wrong = [
        agreement(ctf_sign=-1),
        agreement(ctf_sign=0),
        agreement(angle_sign=-1),
        agreement(shift_sign=-1),
    ]
    assert right > 0.995 and max(wrong) < 0.985, f"right {right:.3f}, wrong {np.round(wrong, 3)}"


def test_several_volumes_come_by_their_weights():
    stack = make_particles(
        ["rp", "rp-cp", make_rings(11, 32, 12.0)], 400, box=32, weights=[1, 3, 0], snr=None, random_state=0
    )
    assert stack.pixel_size == 12.0  # of the first Volume
    share = np.bincount(stack.truth["structure"], minlength=3) / 400
    assert share[1] == pytest.approx(0.75, abs=0.07) and share[2] == 0
    variance = stack.read().var(axis=(1, 2))
    rp_cp = stack.truth["structure"] == 1
    assert variance[rp_cp].mean() > variance[~rp_cp].mean()  # the larger particle scatters more


def test_junk_is_labelled_and_looks_like_its_kind():
    stack = make_particles(**{**SMALL, "n_samples": 800}, junk_fraction=0.5, snr=0.2)
    truth, images = stack.truth, stack.read()
    assert truth["is_junk"].mean() == pytest.approx(0.5, abs=0.06)
    assert set(truth["junk_kind"]) == {"", *JUNK_KINDS}
    blank = truth["is_junk"] & (truth["junk_kind"] != "off_centre")
    assert (truth.loc[blank, ["view", "structure"]] == -1).all(axis=None)
    assert truth.loc[blank, ["view_x", "view_y", "view_z"]].isna().all(axis=None)
    assert np.isfinite(truth[["angle_rad", "shift_x", "shift_y"]]).all(axis=None)
    far = truth.loc[truth["junk_kind"] == "off_centre", ["shift_x", "shift_y"]]
    side = 32 * stack.pixel_size
    assert np.hypot(*far.to_numpy().T).min() > 0.34 * side
    power = radial_power(images)[:, 1]  # the lowest frequencies
    by_kind = {kind: np.median(power[truth["junk_kind"] == kind]) for kind in ("", *JUNK_KINDS)}
    assert by_kind["noise"] < 2.0 < by_kind["ice"]
    assert by_kind["edge"] > 10 * by_kind["noise"]
    true_poses(stack)  # finite for junk too


def test_particles_off_centre_are_cut_at_the_box_and_do_not_wrap_round():
    volume = volume_of_blobs(np.array([(0.0, 0.0, 0.0, 25.0, 1.0)]), 32, 10.0)
    stack = make_particles(volume, 200, box=32, junk_fraction=1.0, snr=1e6, defocus=None, random_state=0)
    rows = np.flatnonzero(stack.truth["junk_kind"] == "off_centre")
    images, shift = stack.read(rows), stack.truth.loc[rows, ["shift_x", "shift_y"]].to_numpy() / 10.0
    axis = np.arange(32) - 16
    for image, (x, y) in zip(images, shift, strict=True):
        expected = np.exp(-((axis[None] + x) ** 2 + (axis[:, None] + y) ** 2) / (2 * 2.5**2))
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.999


def test_only_junk_is_noisy_without_noise():
    stack = make_particles(**SMALL, junk_fraction=0.3, snr=None)
    corner = stack.read()[:, :3, :3].std(axis=(1, 2))
    junk = stack.truth["is_junk"].to_numpy()
    assert corner[junk].min() > 0.3 and np.median(corner[~junk]) < 0.3


@pytest.mark.parametrize(("dtype", "mode", "tolerance"), [("float32", 2, 0.0), ("float16", 12, 0.005)])
def test_written_to_disk_it_is_the_same_stack(tmp_path, dtype, mode, tolerance):
    path, few = tmp_path / "particles.mrcs", {**SMALL, "n_samples": 60}
    memory = make_particles(**few, junk_fraction=0.1)
    disk = make_particles(**few, junk_fraction=0.1, path=path, dtype=dtype)
    assert not disk.is_in_memory and disk.truth.equals(memory.truth)
    np.testing.assert_allclose(disk.read(), memory.read(), atol=tolerance)
    assert [file.name for file in tmp_path.iterdir()] == ["particles.mrcs"]
    with mrcfile.open(path) as mrc:
        assert (int(mrc.header.mode), mrc.is_image_stack()) == (mode, True)
        assert float(mrc.voxel_size.x) == pytest.approx(memory.pixel_size)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make_particles(**few, path=path)
    make_particles(**few, path=path, overwrite=True)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("sklearn_cryoem.datasets.forward.ForwardModel.render", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        make_particles(**SMALL, path=tmp_path / "particles.mrcs")
    assert list(tmp_path.iterdir()) == []


def test_a_volume_larger_than_the_images_is_warned_about():
    with pytest.warns(ParticleDataWarning, match="Raise box= or pixel_size="):
        make_particles(make_ribosome_phantom(32, 10.0), 2, box=16, random_state=0)


def test_a_stack_without_truth_has_no_true_poses():
    with pytest.raises(ValueError, match="align it with MAPAligner"):
        aligned_to_truth(ParticleStack(np.zeros((2, 8, 8))))


@pytest.mark.parametrize(
    ("options", "error", "remedy"),
    [
        ({"volume": "lysozyme"}, ValueError, r"Use one of ribosome.*load_volume\(path\)"),
        ({"volume": np.zeros((8, 8, 8))}, TypeError, "use load_volume"),
        ({"volume": []}, ValueError, "Give a name or a Volume"),
        ({"n_samples": 0}, ValueError, r"'n_samples' of make_particles must be an int in \[1"),
        ({"box": 32.0}, TypeError, "'box' of make_particles must be an int"),
        ({"snr": 0.0}, ValueError, r"'snr' of make_particles .* or None"),
        ({"junk_fraction": 1.5}, ValueError, "'junk_fraction'"),
        ({"noise": "pink"}, ValueError, "must be one of 'white', 'coloured'"),
        ({"defocus": (2e4, 1e4)}, ValueError, r"None or \(lowest, highest\) in Angstrom"),
        ({"weights": [1, 1]}, ValueError, "must hold 1 numbers of at least 0"),
        ({"path": "particles.star"}, ValueError, "must end in .mrcs"),
        ({"voltage_volts": 300.0}, ValueError, "'voltage_volts'"),
    ],
)
def test_errors_say_what_was_expected(options, error, remedy):
    with pytest.raises(error, match=remedy):
        make_particles(**{"n_samples": 2, "box": 16, **options})
