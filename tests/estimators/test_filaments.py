"""Filaments: angles near the direction of their tube, either way round, and shifts within the rise."""

import shutil
import subprocess

import numpy as np
import pytest
import starfile
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem import MAPAligner, ParticleStack, Poses, read_particles, write_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import make_particles, project, volume_of_blobs
from sklearn_cryoem.io.cryosparc import relion_columns

BOX, PIXEL_SIZE = 48, 5.0
SIGMA = np.radians(3.0)


def filament(twist):
    """Arrowheads along z every 30 Angstrom, each turned by `twist` degrees against the last."""
    unit = np.array([[8, 0, 9, 1.0], [20, 10, 8, 0.8], [32, 20, 7, 0.8]])  # x, z, width, height
    blobs = []
    for number in range(-9, 10):
        angle = np.radians(twist) * number
        for x, z, width, height in unit:
            for side in (x, -x):
                place = side * np.cos(angle), side * np.sin(angle), z + 30.0 * number
                blobs.append([*place, width, height])
    return volume_of_blobs(np.array(blobs), BOX, PIXEL_SIZE)


@pytest.fixture(scope="module")
def segments():
    """Segments of two polar filaments, up to half a rise off along them, and their truth."""
    rng, n = np.random.default_rng(0), 300
    kind, psi = rng.integers(2, size=n), rng.uniform(0, 2 * np.pi, n)
    along, across = rng.uniform(-15, 15, n), rng.normal(0, 4, n)
    shift = np.column_stack(
        [np.cos(psi) * along + np.sin(psi) * across, np.cos(psi) * across - np.sin(psi) * along]
    )  # R_-psi (along, across)
    images = np.empty((n, BOX, BOX))
    for number, twist in enumerate((60.0, 90.0)):
        mine = kind == number
        views = np.zeros(mine.sum()), np.full(mine.sum(), np.pi / 2)
        images[mine] = project(filament(twist), *views, psi[mine], shift[mine] / PIXEL_SIZE)
    images = np.sqrt(0.3) / images.std() * images + rng.standard_normal(images.shape)
    tube = psi + SIGMA * rng.standard_normal(n) + np.pi * rng.integers(2, size=n)
    stack = ParticleStack(images.astype(np.float32), pixel_size=PIXEL_SIZE)
    return stack.with_poses(Poses(tube, np.zeros((n, 2)))), kind, psi


def test_segments_are_classed_along_their_tubes(segments):
    stack, kind, psi = segments
    aligner = MAPAligner(
        2, angle_sigma=SIGMA, helical_rise=30.0, n_batches=60, mask_diameter=180, max_shift=20, random_state=0
    ).fit(stack)
    assert adjusted_rand_score(kind, aligner.labels_) > 0.95
    off = aligner.poses_.angle_rad - psi
    assert np.degrees(np.abs(np.angle(np.exp(2j * off))) / 2).max() < 8, "filaments lie along x"
    for label in range(2):
        same_way = np.cos(off[aligner.labels_ == label]) > 0
        assert max(same_way.mean(), 1 - same_way.mean()) > 0.9, "and point one way in a class"
    angle, shift = aligner.poses_.angle_rad, aligner.poses_.shift
    along = np.cos(angle) * shift[:, 0] - np.sin(angle) * shift[:, 1]
    assert np.abs(along).max() < 15 + 6, "half of the rise, and a step of the search"
    averages = aligner.class_averages_
    axis = np.arange(BOX) - BOX // 2
    spread = [np.sqrt((np.maximum(averages, 0).sum(axis=(0, i)) * axis**2).sum()) for i in (1, 2)]
    assert spread[0] > 2 * spread[1]
    assert aligner.transform(stack.with_poses(None)[:3]).poses is not None, "without a tube, all angles"


def test_tubes_are_read_and_kept(segments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stack, _, _ = segments
    tube = np.degrees(stack.poses.angle_rad) % 360 - 180
    plain = stack.with_poses(None).with_metadata(
        rlnAnglePsiPrior=tube.round(3), rlnHelicalTubeID=np.arange(len(stack)) // 20 + 1
    )
    write_particles(plain, "segments.star")
    table = starfile.read("segments.star")["particles"]
    assert "rlnAnglePsi" not in table
    again = read_particles("segments.star", ctf=False)
    np.testing.assert_allclose(
        np.angle(np.exp(1j * (again.poses.angle_rad - np.radians(tube)))), 0, atol=1e-4
    )
    assert not again.poses.shift.any()
    few = (
        "--align-classes 2 --align-batches 5 --align-iterations 1 --classes 2 --iterations 2 --jobs 1".split()
    )
    words = ["--no-ctf", "--sigma-psi", "3", "--helical-rise", "30", "--latent-dim", "1", "--quiet", *few]
    assert main(["classify", "segments.star", "-o", "out", *words]) == 0
    written = starfile.read("out/particles.star")["particles"]
    for name in ("rlnAnglePsiPrior", "rlnHelicalTubeID"):
        np.testing.assert_allclose(written[name], table[name])
    off = np.radians(written["rlnAnglePsi"] - written["rlnAnglePsiPrior"])
    assert np.degrees(np.abs(np.angle(np.exp(2j * off))) / 2).max() < 15
    if shutil.which("relion_star_handler"):
        ctf = make_particles(
            "ribosome", len(stack), box=8, random_state=0
        ).ctf  # RELION reads none without it
        write_particles(read_particles("out/particles.star", ctf=False).with_ctf(ctf), "whole.star")
        words = ["relion_star_handler", "--i", "whole.star", "--o", "t.star"]
        subprocess.run([*words, "--select", "rlnHelicalTubeID", "--minval", "3", "--maxval", "3"], check=True)
        assert len(starfile.read("t.star")["particles"]) == 20


@pytest.mark.parametrize("has_micrographs", [True, False])
def test_tubes_of_cryosparc_get_numbers_in_relion(segments, has_micrographs):
    fields = {"uid": np.arange(6), "filament/filament_uid": np.array([70, 10, 70, 900, 10, 10], np.uint64)}
    if has_micrographs:
        fields["location/micrograph_uid"] = np.array([5, 5, 5, 4, 4, 4])
    table, lost = relion_columns(segments[0][:6].with_metadata(**fields))
    assert table["rlnHelicalTubeID"].tolist() == (
        [2, 1, 2, 2, 1, 1] if has_micrographs else [2, 1, 2, 3, 1, 1]
    )
    assert not lost


def test_what_does_not_belong_together_is_refused(segments):
    stack = segments[0]
    for options, remedy in (
        ({"helical_rise": 30.0}, "Give angle_sigma, too"),
        ({"angle_sigma": 0.1, "angle_range": 0.2}, "to filaments only"),
    ):
        with pytest.raises(ValueError, match=remedy):
            MAPAligner(2, **options).fit(stack)
    with pytest.raises(ValueError, match="or leave angle_sigma out"):
        MAPAligner(2, angle_sigma=0.1).fit(stack.with_poses(None))
