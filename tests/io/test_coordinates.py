"""Particles on their micrographs: the same one found twice, and coordinates at the centres found."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem import CTFTable, ParticleStack, Poses, read_particles, write_particles
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io import duplicates, recentred, write_mrc
from sklearn_cryoem.particles import best_of_classes

N, PIXEL, MICROGRAPH_PIXEL = 300, 3.0, 1.5
CTF = {"defocus_u_angstrom": 1e4, "defocus_v_angstrom": 1e4, "astigmatism_angle_rad": 0.0,
       "voltage_volts": 3e5, "cs_angstrom": 2.7e7, "amplitude_contrast": 0.1}  # fmt: skip


@pytest.fixture
def stack():
    """Particles of three micrographs, many of them picked twice, off centre by up to 20 Angstrom."""
    rng = np.random.default_rng(0)
    place = rng.uniform(0, 1000, (N, 2)).round(2)
    shift = rng.uniform(-20, 20, (N, 2)).round(3)
    again = rng.permutation(N)[:80]
    place[again[:40]] = place[again[40:]] + rng.normal(0, 8, (40, 2)).round(2)
    names = [f"m{i % 3}.mrc" for i in range(N)]
    for first, second in zip(again[:40], again[40:], strict=True):
        names[first] = names[second]
    table = pd.DataFrame({"rlnMicrographName": names, "rlnCoordinateX": place[:, 0],
                          "rlnCoordinateY": place[:, 1]})  # fmt: skip
    images = rng.normal(size=(N, 8, 8)).astype(np.float32)
    poses = Poses(rng.uniform(0, 6, N), shift)
    return ParticleStack(
        images, pixel_size=PIXEL, ctf=CTFTable.constant(N, **CTF), poses=poses, metadata=table
    )


def test_no_two_that_are_left_are_closer_and_none_is_dropped_without_need(stack):
    value = np.random.default_rng(1).random(N)
    twice = duplicates(stack, 60.0, value, micrograph_pixel_size=MICROGRAPH_PIXEL)
    table = stack.metadata
    place = table[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy() * MICROGRAPH_PIXEL - stack.poses.shift
    near = np.linalg.norm(place[:, None] - place, axis=-1) <= 60.0
    near &= table["rlnMicrographName"].to_numpy()[:, None] == table["rlnMicrographName"].to_numpy()
    np.fill_diagonal(near, False)
    assert 30 < twice.sum() < N / 2
    assert not near[np.ix_(~twice, ~twice)].any()
    better = near & ~twice & (value > value[:, None])  # of a better one that stays
    assert better[twice].any(axis=1).all()


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
def test_relion_finds_as_many_duplicates_and_leaves_none_of_ours(stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_particles(stack, "all.star")
    words = ["--remove_duplicates", "30", "--image_angpix", str(MICROGRAPH_PIXEL)]

    def theirs(*names):
        command = ["relion_star_handler", *words, "--i", names[0], "--o", names[1]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return starfile.read(names[1])["particles"]

    ours = stack[~duplicates(stack, 30.0, micrograph_pixel_size=MICROGRAPH_PIXEL)]
    write_particles(ours, "ours.star")
    assert len(theirs("ours.star", "again.star")) == len(ours) < N
    assert abs(len(theirs("all.star", "theirs.star")) - len(ours)) <= 3


def test_recentred_coordinates_are_where_the_particles_are(stack, tmp_path):
    moved = recentred(stack, micrograph_pixel_size=MICROGRAPH_PIXEL)
    before, after = (one.metadata[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy() for one in (stack, moved))
    step = before - after
    np.testing.assert_allclose(step, np.rint(stack.poses.shift / MICROGRAPH_PIXEL), atol=1e-9)
    assert np.abs(moved.poses.shift).max() <= 0.5 * MICROGRAPH_PIXEL + 1e-9
    centre = before * MICROGRAPH_PIXEL - stack.poses.shift
    np.testing.assert_allclose(after * MICROGRAPH_PIXEL - moved.poses.shift, centre, atol=1e-9)
    write_particles(stack, tmp_path / "p.star")
    blocks = starfile.read(tmp_path / "p.star")
    blocks["optics"]["rlnMicrographPixelSize"] = MICROGRAPH_PIXEL
    starfile.write(blocks, tmp_path / "q.star")
    again = recentred(read_particles(tmp_path / "q.star", ctf=False))
    np.testing.assert_allclose(again.metadata["rlnCoordinateX"], after[:, 0], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*without a place in this format")
def test_both_alignments_of_a_cryosparc_file_move_with_the_coordinates(stack, tmp_path):
    shift = stack.poses.shift
    write_particles(stack, tmp_path / "p.star")
    write_particles(read_particles(tmp_path / "p.star"), tmp_path / "p.cs")
    records = np.load(tmp_path / "p.cs")
    more = {"alignments3D/pose": np.zeros((N, 3), "f4"), "alignments3D/shift": (shift / 6.0).astype("f4"),
            "alignments3D/psize_A": np.full(N, 6.0, "f4"), "location/center_x_frac": np.full(N, 0.5, "f4"),
            "location/center_y_frac": np.full(N, 0.25, "f4"),
            "location/micrograph_shape": np.full((N, 2), 1000, "u4")}  # fmt: skip
    whole = np.empty(N, records.dtype.descr + [(n, v.dtype, v.shape[1:]) for n, v in more.items()])
    for name in whole.dtype.names:
        whole[name] = more[name] if name in more else records[name]
    with open(tmp_path / "p.cs", "wb") as file:
        np.save(file, whole)
    moved = recentred(read_particles(tmp_path / "p.cs", ctf=False), micrograph_pixel_size=MICROGRAPH_PIXEL)
    write_particles(moved, tmp_path / "q.cs")
    after = np.load(tmp_path / "q.cs")
    assert after.dtype == whole.dtype
    left = shift - np.rint(shift / MICROGRAPH_PIXEL) * MICROGRAPH_PIXEL
    np.testing.assert_allclose(after["alignments2D/shift"] * PIXEL, left, atol=1e-4)
    np.testing.assert_allclose(after["alignments3D/shift"] * 6.0, left, atol=1e-4)


@pytest.mark.skipif(shutil.which("relion_preprocess") is None, reason="RELION is not installed")
def test_relion_extracts_a_particle_in_the_middle_of_its_box_at_our_coordinates(tmp_path, monkeypatch):
    """A spot off the centre of its box lies in the middle, after our coordinates as after RELION's own."""
    monkeypatch.chdir(tmp_path)
    micrograph = np.random.default_rng(0).normal(0, 0.01, (128, 128)).astype(np.float32)
    micrograph[70, 50] = 10.0  # row y, column x
    write_mrc("m.mrc", micrograph, 1.0)
    table = pd.DataFrame({"rlnMicrographName": ["m.mrc"], "rlnCoordinateX": [57.0], "rlnCoordinateY": [65.0]})
    box = micrograph[None, 65 - 16 : 65 + 16, 57 - 16 : 57 + 16]
    poses = Poses([0.0], [[7.0, -5.0]])  # added to the content, it centres the spot
    ctf = CTFTable.constant(1, **CTF)
    picked = ParticleStack(box, pixel_size=1.0, ctf=ctf, poses=poses, metadata=table)
    write_particles(picked, "picked.star")
    write_particles(recentred(picked, micrograph_pixel_size=1.0), "ours.star")
    optics = {"rlnOpticsGroupName": "opticsGroup1", "rlnOpticsGroup": 1, "rlnMicrographPixelSize": 1.0,
              "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}  # fmt: skip
    names = {"rlnMicrographName": "m.mrc", "rlnOpticsGroup": 1}
    blocks = {"optics": pd.DataFrame([optics]), "micrographs": pd.DataFrame([names])}
    starfile.write(blocks, "micrographs.star")
    places = {}
    for name, more in (("picked.star", ["--recenter"]), ("ours.star", [])):
        words = ["--reextract_data_star", name, "--extract_size", "32", "--part_dir", f"{name}.d/", *more]
        command = ["relion_preprocess", "--i", "micrographs.star", "--extract", "--part_star", f"new_{name}"]
        done = subprocess.run(command + words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        new = read_particles(f"new_{name}", ctf=False)
        places[name] = np.unravel_index(np.abs(new.read()[0]).argmax(), (32, 32))
        assert new.metadata[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy().tolist() == [[50.0, 70.0]]
    assert places["picked.star"] == places["ours.star"] == (16, 16)


def test_what_is_not_known_is_said(stack):
    for broken, remedy in [
        (stack._replace(metadata=None), "Give the file that they were extracted to"),
        (stack._replace(metadata=stack.metadata[["rlnMicrographName"]]), "have no coordinates"),
        (stack, "Pass micrograph_pixel_size="),
        (stack.with_metadata(rlnMicrographOriginalPixelSize=0.5), "Pass micrograph_pixel_size="),
        (
            stack.with_metadata(rlnMicrographPixelSize=[np.nan] + [1.5] * (N - 1)),
            "Pass micrograph_pixel_size=",
        ),
        (
            stack.with_metadata(rlnCoordinateY=[1.0, np.inf] * (N // 2)),
            "150 of the 300 .* particle 2. Correct",
        ),
        (stack.with_metadata(rlnMicrographName=["a", "", np.nan] * (N // 3)), "200 .* name no micrograph"),
    ]:
        with pytest.raises(ParticleDataError, match=remedy):
            duplicates(broken, 30.0)
    with pytest.raises(ParticleDataError, match="Align them first"):
        recentred(stack.with_poses(None))
    with pytest.raises(ParticleDataError, match="Read the particles with pixel_size="):
        duplicates(stack._replace(pixel_size=None), 30.0, micrograph_pixel_size=1.0)


def test_the_best_of_each_class_are_kept():
    labels, values = [0, 1, 0, 0, -1, 1, 0], [3.0, 1.0, np.nan, 2.0, 9.0, 1.0, 2.0]
    assert np.flatnonzero(best_of_classes(labels, values, drop_worst=0.5)).tolist() == [0, 1, 3]
    assert np.flatnonzero(best_of_classes(labels, values, drop_worst=0.4)).tolist() == [0, 1, 3, 5, 6]
    assert np.flatnonzero(best_of_classes(labels, values, max_per_class=1)).tolist() == [0, 1]
