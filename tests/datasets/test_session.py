"""Particles as hard as those of a real session: what is drawn, and what the images show."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom, make_session, volume_of_blobs
from sklearn_cryoem.datasets.draws import (
    JUNK_KINDS,
    POLE_SPREAD_RAD,
    draw_picks,
    draw_views,
    uniform_directions,
    view_density,
)
from sklearn_cryoem.datasets.session import draw_session
from sklearn_cryoem.datasets.volumes import centred, diameter_angstrom
from sklearn_cryoem.io import duplicates, read_particles, write_particles
from sklearn_cryoem.particles import Poses
from sklearn_cryoem.particles.preprocess import BACKGROUND_SHARE
from sklearn_cryoem.physics.images import radial_power
from sklearn_cryoem.physics.masks import pixel_radius

SMALL = {"n_samples": 250, "box": 32, "random_state": 0}
POLES = np.eye(3)[:2]


@pytest.fixture(scope="module")
def session():
    return make_session(**SMALL)


def test_the_same_seed_gives_the_same_bits_for_any_workers_and_on_disk(session, tmp_path):
    again = make_session(**SMALL, n_jobs=3, path=tmp_path / "particles.mrcs")
    assert again.truth.equals(session.truth) and not again.is_in_memory
    np.testing.assert_array_equal(again.read(), session.read())


def test_micrographs_survive_a_star_file_as_noise_groups(session, tmp_path):
    write_particles(session, tmp_path / "particles.star")
    back = read_particles(tmp_path / "particles.star")
    assert len(np.unique(session.noise_group)) == 5
    _, code = np.unique(back.noise_group, return_inverse=True)
    np.testing.assert_array_equal(code, session.truth["micrograph"])


def test_a_particle_that_is_picked_twice_stands_where_it_stands(tmp_path):
    made = make_session("ribosome", 400, box=16, pixel_size=20.0, picked_twice=0.3, random_state=1)
    twice = made.truth["particle"].duplicated().to_numpy()
    assert (
        twice.mean() == pytest.approx(0.3 * 0.8**2 / 1.3, abs=0.05) and not made.truth["is_junk"][twice].any()
    )
    write_particles(made, tmp_path / "particles.star", write_images=True)
    poses = Poses(made.truth["angle_rad"], made.truth[["shift_x", "shift_y"]])
    read = read_particles(tmp_path / "particles.star").with_poses(poses)
    np.testing.assert_array_equal(duplicates(read, 1.0), twice)  # at one place, by the pose that is true
    np.testing.assert_array_equal(duplicates(read, 0.5 * 16 * 20.0), twice)  # and others are far away


@pytest.mark.parametrize("preferred", [0.0, 0.55, 1.0])
def test_view_density_is_one_on_average_and_is_what_is_drawn(rng, preferred):
    sphere = uniform_directions(20_000, rng)
    density = view_density(sphere, POLES, preferred)
    assert density.mean() == pytest.approx(1.0, abs=1e-3)
    drawn = draw_views(20_000, rng, POLES, preferred)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0, atol=1e-12)
    for pole in POLES:
        inside = sphere @ pole > np.cos(1.5 * POLE_SPREAD_RAD)
        expected = density[inside].sum() / len(sphere)
        assert (drawn @ pole > np.cos(1.5 * POLE_SPREAD_RAD)).mean() == pytest.approx(expected, abs=0.015)


def test_picks_are_off_by_at_most_the_longest_distance_most_of_them_by_little(rng):
    distance = np.hypot(*draw_picks(20_000, rng, 40.0).T)
    assert 39.0 < distance.max() <= 40.0
    # a normal distribution of 0.3 along each axis, cut at 1, and 15 % uniform in the disc
    expected = 0.85 * (1 - np.exp(-0.5 * (0.5 / 0.3) ** 2)) / (1 - np.exp(-0.5 / 0.3**2)) + 0.15 * 0.25
    assert (distance <= 20.0).mean() == pytest.approx(expected, abs=0.015)


def test_truth_is_that_of_a_session(session):
    truth, ctf = session.truth, session.ctf
    assert truth["is_junk"].mean() == pytest.approx(0.2, abs=0.06)
    assert set(truth["junk_kind"]) == {"", *JUNK_KINDS}
    good = truth[~truth["is_junk"]]
    side = 32 * session.pixel_size
    assert np.hypot(good["shift_x"], good["shift_y"]).max() <= side / 8
    assert truth["view_density"].isna().equals(truth["structure"] < 0)
    assert (truth.loc[truth["junk_kind"] == "off_centre", "n_neighbours"] > 0).all()
    assert (truth.loc[truth["structure"] < 0, "n_neighbours"] == 0).all()
    assert good["n_neighbours"].mean() == pytest.approx(0.3, abs=0.1)
    assert np.square(truth["contrast"]).mean() == pytest.approx(1.0, abs=0.3)
    assert (np.diff(truth["micrograph"]) >= 0).all()
    mean = 0.5 * (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom)
    by_micrograph = truth.assign(defocus=mean, angle=ctf.astigmatism_angle_rad).groupby("micrograph")
    assert by_micrograph["angle"].nunique().eq(1).all()
    within = np.sqrt(by_micrograph["defocus"].var().mean())
    assert within == pytest.approx(150.0, rel=0.15) and by_micrograph["defocus"].mean().std() > 10 * within


def test_noise_differs_by_micrograph_and_every_background_is_normalised():
    fields = make_session(**{**SMALL, "box": 48, "junk_fraction": 1.0})
    outside = pixel_radius(48) > BACKGROUND_SHARE * 48
    background = fields.read()[:, outside]
    np.testing.assert_allclose(background.mean(axis=1), 0.0, atol=1e-4)
    np.testing.assert_allclose(background.std(axis=1), 1.0, atol=1e-4)
    empty = np.flatnonzero(fields.truth["junk_kind"] == "noise")
    power = np.log(
        radial_power(fields.read(empty))[:, 2:6].mean(axis=1)
        / radial_power(fields.read(empty))[:, -4:].mean(axis=1)
    )
    micrograph = fields.truth["micrograph"].to_numpy()[empty]
    means = np.array([power[micrograph == number].mean() for number in np.unique(micrograph)])
    within = np.mean([power[micrograph == number].var() for number in np.unique(micrograph)])
    per_group = len(empty) / len(means)
    assert means.var() > 3 * within / per_group, "the slope of the spectrum should differ by micrograph"


def test_neighbours_stand_at_least_a_diameter_away_and_are_cut_off_by_the_box(rng):
    """A slow twin puts each of them on a large canvas of which the box is the middle."""
    box, pixel_size = 31, 8.0
    volume = make_ribosome_phantom(box, pixel_size)
    model = draw_session(
        [volume], 40, rng, box=box, pixel_size=pixel_size, preferred_views=0.5, max_shift=20.0,
        crowding=2.0, junk_fraction=0.2, picked_twice=0.0, defocus=(1e4, 2e4),
    ).scaled_to(1.0)  # fmt: skip
    rows = np.flatnonzero(model.truth["structure"] >= 0)
    table = model.neighbours.truth
    wide = replace(model.neighbours, scale=model.scale).wide_signal(np.arange(len(table)))
    expected = np.array(model.cropped(model.wide_signal(rows)))
    for image, row, x, y in zip(wide, table["row"], table["x_px"], table["y_px"], strict=True):
        canvas = np.zeros((8 * box, 8 * box))
        top, left = 4 * box - box + y, 4 * box - box + x  # the middle of the image is its pixel (box, box)
        canvas[top : top + 2 * box, left : left + 2 * box] = image
        start = 4 * box - box // 2
        expected[np.searchsorted(rows, row)] += canvas[start : start + box, start : start + box]
    np.testing.assert_allclose(model.shown(rows), expected, atol=1e-5)
    of = model.truth.iloc[table["row"]].reset_index(drop=True)
    apart = np.hypot(table["x_px"] + of["shift_x"] / pixel_size, table["y_px"] + of["shift_y"] / pixel_size)
    diameter = diameter_angstrom(volume) / pixel_size
    assert (apart[~of["is_junk"]] >= diameter - 1.0).all()
    assert np.hypot(table["x_px"], table["y_px"]).min() >= 0.5 * diameter - 1.0, "none is in the middle"


def test_a_volume_is_centred_on_its_mass():
    volume = volume_of_blobs(
        np.array([(17.0, -8.0, 3.0, 20.0, 1.0), (-20.0, 10.0, 0.0, 15.0, 2.0)]), 32, 10.0
    )
    axis = np.arange(32) - 16.0
    mass = centred(volume).array.astype(float)
    for summed in ((0, 1), (0, 2), (1, 2)):
        profile = mass.sum(axis=summed)
        assert (profile * axis).sum() / profile.sum() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("sd", [10.0, 20.0])
def test_the_diameter_of_a_gaussian_ball(sd):
    """98 % of exp(-r^2 / sd^2) in three dimensions lie within 2.218 sd."""
    ball = volume_of_blobs(np.array([(0.0, 0.0, 0.0, sd, 1.0)]), 64, 2.5)
    assert diameter_angstrom(ball) == pytest.approx(2 * 2.218 * sd, abs=2.5)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"snr": 0.0}, "'snr' of make_session"),
        ({"preferred_views": 1.5}, "'preferred_views' of make_session"),
        ({"max_shift": -1.0}, "'max_shift' of make_session"),
        ({"crowding": -1.0}, "'crowding' of make_session"),
        ({"defocus": (2e4, 1e4)}, r"'defocus' of make_session .*\(lowest, highest\)"),
        ({"path": "particles.star"}, "'path' of make_session must end in .mrcs"),
    ],
)
def test_errors_say_what_was_expected(options, remedy):
    with pytest.raises(ValueError, match=remedy):
        make_session(n_samples=2, box=16, **options)
