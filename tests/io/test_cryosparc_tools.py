"""cryoSPARC's own library reads what we write, and we what it writes; its 2-D poses turn as ours do."""

import numpy as np
import pytest

from sklearn_cryoem import read_particles, write_particles
from sklearn_cryoem.datasets import make_particles, true_poses
from sklearn_cryoem.particles import ParticleStack, with_classes
from sklearn_cryoem.physics.rotation import aligned_images

dataset = pytest.importorskip(
    "cryosparc.dataset",
    reason="cryosparc-tools is not installed (pip install 'sklearn-cryoem[cryosparc]'): .cs files were not "
    "checked with it",
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Particles in a STAR file with classes and poses, and the same written as .cs."""
    folder = tmp_path_factory.mktemp("sparc")
    stack = make_particles(
        "ribosome", 40, box=24, snr=5.0, n_views=2, max_shift=30.0, astigmatism=1000.0, random_state=0
    )
    stack = with_classes(stack.with_poses(true_poses(stack)), stack.truth["view"].to_numpy())
    write_particles(stack, folder / "p.star", posterior=np.full(40, 0.75))
    stack = read_particles(folder / "p.star")
    write_particles(stack, folder / "p.cs")
    return folder, stack


def test_their_library_reads_what_we_write(simulated):
    folder, stack = simulated
    table = dataset.Dataset.load(folder / "p.cs")
    assert len(table) == 40 and {"blob", "ctf", "alignments2D"} <= set(table.prefixes())
    assert len(set(table["uid"])) == 40
    np.testing.assert_allclose(table["alignments2D/pose"], stack.poses.angle_rad, rtol=1e-6)
    np.testing.assert_allclose(table["alignments2D/shift"] * stack.pixel_size, stack.poses.shift, atol=1e-4)
    np.testing.assert_allclose(table["alignments2D/psize_A"], stack.pixel_size, rtol=1e-6)
    assert table["alignments2D/class"].tolist() == (stack.metadata["rlnClassNumber"] - 1).tolist()
    assert set(table["alignments2D/class_posterior"]) == {0.75}
    np.testing.assert_allclose(table["ctf/df1_A"], stack.ctf.defocus_u_angstrom, rtol=1e-6)
    np.testing.assert_allclose(table["ctf/accel_kv"], 300.0)
    assert table["blob/shape"].tolist() == [[24, 24]] * 40 and set(table["blob/idx"]) == set(range(40))
    assert set(table["blob/path"]) == {"p.mrcs"} and set(table["blob/sign"]) == {1.0}


def test_we_read_what_their_library_writes(simulated, tmp_path):
    folder, stack = simulated
    table = dataset.Dataset.load(folder / "p.cs")
    chosen = table.query({"alignments2D/class": 1})
    chosen.save(folder / "chosen.cs")
    again = read_particles(folder / "chosen.cs")
    rows = np.flatnonzero(stack.metadata["rlnClassNumber"] == 2)
    np.testing.assert_array_equal(again.read(), stack.read(rows))
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift[rows], atol=1e-4)
    np.testing.assert_allclose(again.ctf.defocus_v_angstrom, stack.ctf.defocus_v_angstrom[rows], rtol=1e-6)


def test_real_tables_pass_through_us_unchanged(shared_data, tmp_path):
    path = shared_data / "metadata" / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    write_particles(read_particles(path, metadata_only=True), tmp_path / "out.cs")
    ours, theirs = dataset.Dataset.load(tmp_path / "out.cs"), dataset.Dataset.load(path)
    assert ours.fields() == theirs.fields()
    for name in theirs.fields():
        assert np.array_equal(ours[name], theirs[name]), name


def csparc2star_pose(row):
    """How the converter in common use (pyem) turns a 2-D pose into RELION's columns: degrees and pixels."""
    return np.rad2deg(row["alignments2D/pose"]), row["alignments2D/shift"]


def test_a_real_table_of_2d_poses_is_read_by_the_documented_convention(shared_data):
    path = shared_data / "metadata" / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    stack, table = read_particles(path, metadata_only=True), dataset.Dataset.load(path)
    expected = [csparc2star_pose(row) for row in table.rows()]
    psi, shift_px = np.array([pose[0] for pose in expected]), np.array([pose[1] for pose in expected])
    np.testing.assert_allclose(np.rad2deg(stack.poses.angle_rad), psi, rtol=1e-6)
    np.testing.assert_allclose(stack.poses.shift, shift_px * 1.345, rtol=1e-6)
    assert np.abs(shift_px).max() > 0, "a table without shifts would prove nothing"


def test_images_moved_by_the_documented_convention_come_back_aligned(simulated):
    """The convention drawn: particle at -shift, turned by -pose, in their table; aligned after we read it."""
    folder, _ = simulated
    axis = np.arange(24) - 12
    x, y = axis[None, :], axis[:, None]

    def wedge(u, v):  # asymmetric, so that a wrong sign shows
        return np.exp(-((u / 5) ** 2 + (v / 2) ** 2)) + np.exp(-(((u - 4) / 1.5) ** 2 + ((v - 3) / 1.5) ** 2))

    pose, shift = np.array([0.0, 0.7, -2.0]), np.array([[0.0, 0.0], [3.0, -1.0], [-2.0, 4.0]])
    images = []
    for angle, (dx, dy) in zip(pose, shift, strict=True):
        u, v = x + dx, y + dy  # adding the shift to the content centres it
        turned = np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v
        images.append(wedge(*turned))
    write_particles(ParticleStack(np.array(images, dtype=np.float32), pixel_size=2.0), folder / "w.star")
    write_particles(read_particles(folder / "w.star", ctf=False), folder / "w.cs")
    table = dataset.Dataset.load(folder / "w.cs")
    table.add_fields(["alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A"], ["f4", "2f4", "f4"])
    table["alignments2D/pose"], table["alignments2D/shift"], table["alignments2D/psize_A"] = pose, shift, 2.0
    table.save(folder / "wedges.cs")
    read = read_particles(folder / "wedges.cs", ctf=False)
    aligned = aligned_images(read.read(), read.poses.angle_rad, read.poses.shift_px(2.0))
    target = wedge(x, y).ravel()
    for image in aligned:
        assert np.corrcoef(image.ravel(), target)[0, 1] > 0.99
