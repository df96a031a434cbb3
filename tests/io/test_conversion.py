"""RELION to cryoSPARC and back: what both have a place for keeps its meaning."""

import shutil
import subprocess

import numpy as np
import pytest
import starfile

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_mrc, read_particles, rename_images, write_particles
from sklearn_cryoem.io.image_files import missing_files
from sklearn_cryoem.particles import ParticleStack, Poses, class_labels, concatenate
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc
from sklearn_cryoem.physics.rotation import euler_matrices

ROWS = np.arange(9)
ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]


def particles_of(path):
    return list(starfile.read(path, always_dict=True).values())[-1]


def frames(table):
    return euler_matrices(*np.deg2rad(table[ANGLES].to_numpy(dtype=float)).T)


@pytest.fixture
def project(project):
    """A project without coordinates, which are fractions of the micrograph in a .cs file."""
    del project.particles["rlnCoordinateX"]
    return project


@pytest.fixture
def refined(project):
    """A project after a 3-D refinement in two halves."""
    project.particles["rlnAngleRot"] = 40.0 * ROWS - 170
    project.particles["rlnAngleTilt"] = 20.0 * ROWS + 5
    project.particles["rlnRandomSubset"] = ROWS % 2 + 1
    return project


# ------------------------------------------------------------------------------------ view directions, halves
def test_a_refinement_goes_to_cryosparc_and_back(refined):
    stack = read_particles(refined.write())
    write_particles(stack, refined.folder / "a.cs")
    records = np.load(refined.folder / "a.cs")
    assert records["alignments3D/split"].tolist() == (ROWS % 2).tolist()
    np.testing.assert_allclose(records["alignments3D/psize_A"], 2.0)
    shift = refined.particles[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy()
    np.testing.assert_allclose(records["alignments3D/shift"], shift / 2.0)
    assert "alignments2D/pose" not in records.dtype.names, "one pose, and it is the 3-D one"
    again = read_particles(refined.folder / "a.cs")
    turn = np.angle(np.exp(1j * (again.poses.angle_rad - stack.poses.angle_rad)))
    np.testing.assert_allclose(turn, 0, atol=1e-5)
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift, atol=1e-5)
    write_particles(again, refined.folder / "b.star")
    back = particles_of(refined.folder / "b.star")
    np.testing.assert_allclose(frames(back), frames(refined.particles), atol=1e-6)
    np.testing.assert_allclose(back[ANGLES], refined.particles[ANGLES], atol=1e-4)
    assert back["rlnRandomSubset"].tolist() == (ROWS % 2 + 1).tolist()
    np.testing.assert_allclose(back["rlnOriginXAngst"], ROWS, atol=1e-5)


def test_a_turn_about_the_viewing_axis_is_one(project):
    project.particles["rlnAnglePsi"], project.particles["rlnAngleRot"] = 30.0, 0.0
    project.particles["rlnAngleTilt"] = [0.0] * 8 + [90.0]
    write_particles(read_particles(project.write()), project.folder / "a.cs")
    pose = np.load(project.folder / "a.cs")["alignments3D/pose"]
    np.testing.assert_allclose(pose[:8], [[0, 0, np.pi / 6]] * 8, atol=1e-6)


def test_directions_of_an_alignment_before_are_not_mixed_with_another_psi(refined):
    stack = read_particles(refined.write())
    turned = stack.with_poses(Poses(stack.poses.angle_rad + 0.5, stack.poses.shift))
    with pytest.warns(ParticleDataWarning, match=r"not written: rlnAngleRot, rlnAngleTilt. Keep"):
        write_particles(turned, refined.folder / "a.cs")
    assert "alignments3D/pose" not in np.load(refined.folder / "a.cs").dtype.names
    write_particles(stack, refined.folder / "b.cs")
    from_cs = read_particles(refined.folder / "b.cs")
    turned = from_cs.with_poses(Poses(from_cs.poses.angle_rad + 0.5, from_cs.poses.shift))
    with pytest.warns(ParticleDataWarning, match=r"alignments3D/pose \(a STAR file has one pose.*Keep"):
        write_particles(turned, refined.folder / "c.star")
    assert "rlnAngleRot" not in particles_of(refined.folder / "c.star")


@pytest.mark.parametrize("version", ["3.0", "3.1"])
def test_directions_of_an_alignment_before_leave_a_star_file_with_their_psi(refined, version):
    stack, path = read_particles(refined.write()), refined.folder / "a.star"
    write_particles(stack, path, star_version=version)
    np.testing.assert_array_equal(particles_of(path)[ANGLES], refined.particles[ANGLES])
    turned = stack.with_poses(Poses(stack.poses.angle_rad + 0.5, stack.poses.shift))
    with pytest.warns(ParticleDataWarning, match=r"rlnAngleRot, rlnAngleTilt \(of another alignment.*Keep"):
        write_particles(turned, path, star_version=version, overwrite=True)
    left = particles_of(path)
    assert not {"rlnAngleRot", "rlnAngleTilt"} & set(left.columns)
    turn = np.deg2rad(left["rlnAnglePsi"] - refined.particles["rlnAnglePsi"])
    np.testing.assert_allclose(np.exp(1j * turn), np.exp(0.5j), atol=1e-6)
    refined.particles[["rlnAngleRot", "rlnAngleTilt"]] = 0.0  # nothing is lost, and nothing said
    write_particles(read_particles(refined.write()).with_poses(turned.poses), path, overwrite=True)
    assert "rlnAngleRot" not in particles_of(path).columns


@pytest.mark.parametrize("subset", [0, 1])
def test_half_sets_that_are_none_are_not_written(refined, subset):
    refined.particles["rlnRandomSubset"] = subset
    stack = read_particles(refined.write())
    if subset:  # all in one half: kept, but no halves for RELION
        write_particles(stack, refined.folder / "a.cs")
        write_particles(read_particles(refined.folder / "a.cs"), refined.folder / "b.star")
        assert "rlnRandomSubset" not in particles_of(refined.folder / "b.star")
    else:
        write_particles(stack, refined.folder / "a.cs")
        assert "alignments3D/split" not in np.load(refined.folder / "a.cs").dtype.names


# ------------------------------------------------------------------------------------ classes
@pytest.mark.parametrize("none", [0, -999])
def test_particles_without_a_class_are_told_of_where_it_cannot_be_said(project, none):
    project.particles["rlnClassNumber"] = [none, none, 1, 2, 3, 1, 2, 3, 1]
    stack = read_particles(project.write())
    assert class_labels(stack).tolist() == [-1, -1, 0, 1, 2, 0, 1, 2, 0]
    with pytest.warns(ParticleDataWarning, match=r"rlnClassNumber \(2 of 9 particles have no class.*Keep"):
        write_particles(stack, project.folder / "a.cs")
    write_particles(stack[2:], project.folder / "b.cs")
    assert np.load(project.folder / "b.cs")["alignments2D/class"].tolist() == [0, 1, 2, 0, 1, 2, 0]


# ------------------------------------------------------------------------------------ dark particles
def sign_of(path):
    return set(np.load(path)["blob/sign"].tolist())


@pytest.fixture
def dark_cs(project):
    """A .cs file of particles that are dark where they lie."""
    write_particles(read_particles(project.write()), project.folder / "white.cs")
    records = np.load(project.folder / "white.cs")
    assert set(records["blob/sign"]) == {1.0}
    records["blob/sign"] = -1
    with open(project.folder / "dark.cs", "wb") as file:
        np.save(file, records)
    return project.folder / "dark.cs"


@pytest.mark.parametrize("invert", [False, True])
def test_dark_particles_stay_dark_for_cryosparc(dark_cs, invert):
    """Whether they were inverted on reading or not: their files are the same."""
    stack = read_particles(dark_cs, invert=invert)
    write_particles(stack, dark_cs.with_name("again.cs"))
    write_particles(stack, dark_cs.with_name("a.star"))
    assert set(particles_of(dark_cs.with_name("a.star"))["cryosparcSign"]) == {-1}
    write_particles(read_particles(dark_cs.with_name("a.star")), dark_cs.with_name("b.cs"))
    assert sign_of(dark_cs.with_name("again.cs")) == sign_of(dark_cs.with_name("b.cs")) == {-1.0}


@pytest.mark.filterwarnings("ignore:.*not written. rlnImageOriginalName")
@pytest.mark.parametrize(("invert", "sign"), [(False, -1.0), (True, 1.0)])
def test_the_sign_of_new_images_is_that_of_their_pixels(dark_cs, project, invert, sign):
    stack = read_particles(dark_cs, invert=invert)
    for place in ("a.star", "b.star"):  # from .cs, and from the STAR file that came of it
        write_particles(stack, dark_cs.with_name(place), write_images=True)
        stack = read_particles(dark_cs.with_name(place))
        np.testing.assert_array_equal(stack.read(), sign * -project.images)
        write_particles(stack, dark_cs.with_name("c.cs"), overwrite=True)
        assert sign_of(dark_cs.with_name("c.cs")) == {sign}


def test_particles_that_a_user_inverts_are_dark_where_they_lie(project):
    stack = read_particles(project.write())
    twice = stack[:2].invert_contrast().invert_contrast()
    mixed = concatenate([stack[:4].invert_contrast(), stack[4:], twice])
    for particles, signs in [(stack.invert_contrast(), [-1] * 9), (mixed, [-1] * 4 + [1] * 7)]:
        write_particles(particles, project.folder / "a.cs", overwrite=True)
        assert np.load(project.folder / "a.cs")["blob/sign"].tolist() == signs


# ------------------------------------------------------------------------------------ micrographs
def test_no_micrograph_is_invented(project):
    del project.particles["rlnMicrographName"]
    project.particles["rlnGroupName"] = ["g1"] * 2 + ["g2"] * 7
    stack = read_particles(project.write())
    write_particles(stack, project.folder / "a.cs")
    assert not [name for name in np.load(project.folder / "a.cs").dtype.names if "location" in name]
    again = read_particles(project.folder / "a.cs")
    np.testing.assert_array_equal(again.noise_group, stack.noise_group)
    write_particles(again, project.folder / "b.star")
    table = particles_of(project.folder / "b.star")
    assert "rlnMicrographName" not in table
    assert table["rlnGroupName"].tolist() == ["g1"] * 2 + ["g2"] * 7


@pytest.mark.parametrize("paths", [None, ["", ">mics/a.mrc"] + [">mics/b.mrc"] * 7])
def test_groups_stand_for_micrographs_that_are_not_known(project, paths):
    project.particles["rlnMicrographName"] = ["mics/a.mrc"] * 5 + ["mics/b.mrc"] * 4
    write_particles(read_particles(project.write()), project.folder / "a.cs")
    records = np.load(project.folder / "a.cs")
    names = [name for name in records.dtype.names if paths or not name.startswith("location")]
    records = records[names].copy()
    if paths:
        records["location/micrograph_path"] = paths
    with open(project.folder / "b.cs", "wb") as file:
        np.save(file, records)
    stack = read_particles(project.folder / "b.cs")
    write_particles(stack, project.folder / "c.star")
    table = particles_of(project.folder / "c.star")
    assert "rlnMicrographName" not in table
    assert table["rlnGroupName"].tolist() == [f"group_{group:06d}" for group in stack.noise_group]
    np.testing.assert_array_equal(read_particles(project.folder / "c.star").noise_group, stack.noise_group)


# ------------------------------------------------------------------------------------ names of images
@pytest.mark.parametrize("suffix", ["", ":mrcs"])
@pytest.mark.parametrize("folder", ["Extract/Movies", "g1@tilt20", "a@b@c/d@e"])
def test_folders_with_an_at_sign_and_names_with_a_format(project, tmp_path, monkeypatch, folder, suffix):
    target = project.folder / folder
    target.mkdir(parents=True, exist_ok=True)
    for stack in ("a", "b"):
        (project.folder / "Extract" / "Movies" / f"{stack}.mrcs").rename(target / f"{stack}.mrc")
    names = project.particles["rlnImageName"].str.replace("Extract/Movies", folder)
    project.particles["rlnImageName"] = names.str.replace(".mrcs", ".mrc") + suffix
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stack = read_particles(project.write())
    np.testing.assert_array_equal(stack.read(), project.images)
    moved, renamed = rename_images(stack, project.star, tmp_path / "elsewhere" / "a.star")
    assert renamed[f"{folder}/b.mrc{suffix}"] == f"{target}/b.mrc{suffix}"
    assert len(missing_files(stack, tmp_path / "elsewhere" / "a.star")) == 2
    assert missing_files(moved, tmp_path / "elsewhere" / "a.star") == []
    write_particles(moved, tmp_path / "elsewhere" / "a.star")
    np.testing.assert_array_equal(read_particles(tmp_path / "elsewhere" / "a.star").read(), project.images)
    write_particles(stack, project.folder / "a.cs")
    assert set(np.load(project.folder / "a.cs")["blob/path"]) == {f"{folder}/{n}.mrc".encode() for n in "ab"}
    np.testing.assert_array_equal(read_particles(project.folder / "a.cs").read(), project.images)


def test_a_name_without_a_number_in_a_folder_with_an_at_sign(project):
    project.particles = project.particles.iloc[:1].assign(rlnImageName="Extract/x@y/a.mrcs")
    (project.folder / "Extract" / "x@y").mkdir()
    (project.folder / "Extract" / "Movies" / "a.mrcs").rename(project.folder / "Extract" / "x@y" / "a.mrcs")
    with pytest.raises(ParticleDataError, match=r"holds 5 images, and no number says.*Write its number"):
        read_particles(project.write())


@pytest.mark.parametrize("written", ["star", "cs"])
def test_stacks_that_end_in_mrc_are_named_so_that_relion_reads_them(project, written):
    """RELION takes a .mrc file for a map, and refuses it as a stack, unless its format is stated."""
    project.stacks[0].rename(project.folder / "a.mrc")
    files = [inspect_mrc(project.folder / "a.mrc")]
    ctf = read_particles(project.write(), metadata_only=True).ctf[:3]
    stack = ParticleStack(FileSource(files, [0, 0, 0], [4, 0, 2]), pixel_size=2.0, ctf=ctf)
    if written == "cs":
        write_particles(stack, project.folder / "a.cs")
        assert set(np.load(project.folder / "a.cs")["blob/path"]) == {b"a.mrc"}
        stack = read_particles(project.folder / "a.cs")
    write_particles(stack, project.folder / "out.star")
    assert particles_of(project.folder / "out.star")["rlnImageName"][1] == "000001@a.mrc:mrcs"
    again = read_particles(project.folder / "out.star")
    np.testing.assert_array_equal(again.read(), project.images[[4, 0, 2]])
    if shutil.which("relion_stack_create"):
        subprocess.run(
            ["relion_stack_create", "--i", "out.star", "--o", "theirs"],
            cwd=project.folder, check=True, capture_output=True,
        )  # fmt: skip
        np.testing.assert_array_equal(read_mrc(project.folder / "theirs.mrcs")[0], again.read())


def test_views_that_were_found_are_written_as_a_three_dimensional_alignment(project):
    view = np.deg2rad(np.column_stack([40.0 * ROWS - 170, 20.0 * ROWS + 5]))
    stack = read_particles(project.write())
    stack = stack.with_poses(Poses(0.1 * ROWS, np.ones((9, 2)), view_rad=view))
    np.testing.assert_allclose(stack[2:4].poses.view_rad, view[2:4])
    write_particles(stack, project.folder / "found.star")
    expected = euler_matrices(*view.T, 0.1 * ROWS)
    np.testing.assert_allclose(frames(particles_of(project.folder / "found.star")), expected, atol=1e-5)
    write_particles(stack, project.folder / "found.cs")
    again = read_particles(project.folder / "found.cs")
    np.testing.assert_allclose(np.cos(again.poses.angle_rad - 0.1 * ROWS), 1.0, atol=1e-5)
    write_particles(again, project.folder / "again.star")
    np.testing.assert_allclose(frames(particles_of(project.folder / "again.star")), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"one \(rot, tilt\) for each angle"):
        Poses(0.1 * ROWS, np.ones((9, 2)), view_rad=view[:3])
