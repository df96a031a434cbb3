import dataclasses
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_mrc, read_particles, write_particles
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses, concatenate


def same_columns(found, expected):
    """Every expected column, in its order, with the same numbers; more may follow."""
    assert list(found.columns)[: len(expected.columns)] == list(expected.columns)
    for name in expected.columns:
        assert found[name].tolist() == expected[name].tolist(), name


@pytest.fixture
def in_memory():
    """A simulated stack that is in no file."""
    generator = np.random.default_rng(0)
    return ParticleStack(
        generator.normal(size=(6, 8, 8)).astype(np.float32),
        pixel_size=2.5,
        ctf=CTFTable(
            defocus_u_angstrom=15000.0 + np.arange(6),
            defocus_v_angstrom=14000.0,
            astigmatism_angle_rad=0.3,
            voltage_volts=[300e3] * 4 + [200e3] * 2,
            cs_angstrom=2.7e7,
            amplitude_contrast=0.07,
            phase_shift_rad=0.5,
        ),
        poses=Poses(np.linspace(-3, 3, 6), generator.normal(size=(6, 2))),
        noise_group=[0, 0, 1, 1, 2, 2],
        metadata=pd.DataFrame({"score": np.arange(6) / 7, "good": [True, False] * 3}),
    )


# ------------------------------------------------------------------------------------ STAR round trips
@pytest.mark.parametrize("version", ["3.1", "3.1 swapped", "3.0", "1.x"])
def test_every_column_comes_back_row_filtered(project, version):
    project.particles["rlnAutopickFigureOfMerit"] = np.random.default_rng(0).normal(
        size=9
    )  # all digits count
    project.particles["rlnNrOfSignificantSamples"] = np.arange(9)
    project.particles["someOtherColumn"] = ["a", "b c", ""] * 3
    stack = read_particles(project.write(version=version))
    rows = [7, 2, 3, 8]
    path = project.folder / "Extract" / "out.star"
    write_particles(stack[rows], path)
    blocks = starfile.read(path, always_dict=True)
    expected = stack.metadata.iloc[rows].reset_index(drop=True)
    if version.startswith("3.1"):
        same_columns(blocks["particles"], expected)
        same_columns(blocks["optics"], project.optics)
    else:
        assert list(blocks) == [""]
        same_columns(blocks[""], expected)
    again = read_particles(path)
    np.testing.assert_array_equal(again.read(), project.images[rows])
    pd.testing.assert_frame_equal(again.metadata, expected)
    np.testing.assert_array_equal(again.ctf.defocus_u_angstrom, stack.ctf.defocus_u_angstrom[rows])
    np.testing.assert_array_equal(again.poses.shift, stack.poses.shift[rows])


@pytest.mark.parametrize("version", ["3.1", "1.x"])
def test_poses_and_labels_are_written_in_relion_s_units(project, version):
    stack = read_particles(project.write(version=version))
    angle, shift = np.linspace(-7, 7, 9), np.random.default_rng(0).normal(size=(9, 2))
    path = project.folder / "out.star"
    write_particles(stack.with_poses(Poses(angle, shift)), path, labels=np.arange(9) % 4)
    blocks = starfile.read(path, always_dict=True)
    table = blocks["particles" if version == "3.1" else ""]
    assert table["rlnClassNumber"].tolist() == (np.arange(9) % 4 + 1).tolist()
    psi = np.deg2rad(table["rlnAnglePsi"])
    np.testing.assert_allclose(np.angle(np.exp(1j * (psi - angle))), 0, atol=1e-7)
    assert table["rlnAnglePsi"].between(-180, 180).all()
    x, y, unit = (
        ("rlnOriginXAngst", "rlnOriginYAngst", 1.0) if version == "3.1" else ("rlnOriginX", "rlnOriginY", 2.0)
    )
    np.testing.assert_allclose(table[[x, y]] * unit, shift, atol=2e-6)
    again = read_particles(path)
    np.testing.assert_allclose(again.poses.shift, shift, atol=2e-6)


@pytest.mark.parametrize("version", ["3.1", "1.x"])
def test_mirrors_come_back(project, version):
    stack = read_particles(project.write(version=version))
    path = project.folder / "out.star"
    write_particles(stack, path)
    assert "rlnIsFlip" not in path.read_text(), "no image is mirrored"
    mirrored = np.arange(9) % 3 == 0
    new = stack.with_poses(Poses(stack.poses.angle_rad, stack.poses.shift, mirrored))
    write_particles(new, path, overwrite=True)
    again = read_particles(path)
    assert again.metadata["rlnIsFlip"].tolist() == mirrored.astype(int).tolist()
    np.testing.assert_array_equal(again.poses.mirrored, mirrored)
    np.testing.assert_allclose(again.poses.angle_rad, new.poses.angle_rad, atol=1e-7)
    write_particles(again.with_poses(stack.poses), path, overwrite=True)  # the column is there, and now wrong
    assert not read_particles(path).poses.mirrored.any()


def test_both_kinds_of_shift_are_kept_in_step(project):
    project.particles["rlnOriginX"] = project.particles["rlnOriginXAngst"] / 2.0
    project.particles["rlnOriginY"] = project.particles["rlnOriginYAngst"] / 2.0
    stack = read_particles(project.write()).with_poses(Poses(np.zeros(9), np.ones((9, 2))))
    write_particles(stack, project.folder / "out.star")
    table = starfile.read(project.folder / "out.star")["particles"]
    assert set(table["rlnOriginXAngst"]) == {1.0}
    assert set(table["rlnOriginY"]) == {0.5}


def test_shifts_of_a_downsampled_stack_stay_those_of_the_images_in_the_file(project):
    stack = read_particles(project.write(version="1.x"))
    write_particles(stack.downsample(4), project.folder / "out.star")
    again = read_particles(project.folder / "out.star")
    np.testing.assert_array_equal(again.poses.shift, stack.poses.shift)
    assert (again.pixel_size, again.box) == (2.0, 8)


def test_a_changed_ctf_is_written(project):
    stack = read_particles(project.write())
    changes = {"defocus_u_angstrom": 1.8e4, "astigmatism_angle_rad": 0.5, "scale": 0.8}
    new = dataclasses.replace(stack.ctf, **{name: np.full(9, value) for name, value in changes.items()})
    write_particles(stack.with_ctf(new), project.folder / "out.star")
    ctf = read_particles(project.folder / "out.star").ctf
    np.testing.assert_allclose(ctf.defocus_u_angstrom, 1.8e4)
    np.testing.assert_allclose(ctf.astigmatism_angle_rad, 0.5, atol=1e-7)
    np.testing.assert_allclose(ctf.scale, 0.8)


def changed_ctf(stack, **changes):
    """The stack with another CTF: each change a value, or one for each particle."""
    new = {name: np.broadcast_to(value, len(stack)) for name, value in changes.items()}
    return stack.with_ctf(dataclasses.replace(stack.ctf, **new))


HALF = np.arange(9) % 2


@pytest.mark.parametrize(
    "changes",
    [
        {"voltage_volts": 200e3},
        {"cs_angstrom": 1.4e7, "amplitude_contrast": 0.07, "phase_shift_rad": 0.5},
        {"voltage_volts": np.where(HALF, 300e3, 200e3)},  # as the groups are
        {"voltage_volts": np.where(np.arange(9) < 4, 300e3, 200e3)},  # across the groups
        {"amplitude_contrast": 0.05 + 0.01 * np.arange(9), "phase_shift_rad": 0.1 * np.arange(9)},
        {"phase_flipped": 1.0, "premultiplied": HALF},
    ],
)
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("version", [None, "3.0"])
def test_a_changed_ctf_of_the_optics_table_is_written(project, changes, stale, version):
    project.optics = pd.concat([project.optics] * 3, ignore_index=True)
    project.optics["rlnOpticsGroup"] = [1, 2, 3]  # nobody is in the third
    project.optics["rlnPhaseShift"] = [10.0, 20.0, 30.0]
    project.particles["rlnOpticsGroup"] = HALF + 1
    if stale:
        project.particles["rlnVoltage"] = 120.0
    stack = changed_ctf(read_particles(project.write()), **changes)
    path = project.folder / "out.star"
    write_particles(stack, path, star_version=version)
    again = read_particles(path)
    for field in dataclasses.fields(CTFTable):
        np.testing.assert_allclose(
            getattr(again.ctf, field.name), getattr(stack.ctf, field.name), rtol=1e-6, err_msg=field.name
        )
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift, atol=1e-6)
    if version is None:
        blocks = starfile.read(path)
        assert {"rlnVoltage", "rlnSphericalAberration"} <= set(blocks["optics"]), "RELION wants them there"
        if "premultiplied" in changes:
            assert blocks["optics"]["rlnCtfDataAreCtfPremultiplied"].tolist() == [0, 1, 0]
        if stale and "voltage_volts" in changes:  # RELION takes it before the value of the group
            assert (1e3 * blocks["particles"]["rlnVoltage"] == stack.ctf.voltage_volts).all()


def test_optics_groups_are_parted_by_a_setting_that_differs_within(project):
    project.optics["rlnMtfFileName"] = "mtf.star"
    stack = read_particles(project.write())
    write_particles(
        changed_ctf(stack, voltage_volts=np.where(HALF, 300e3, 200e3)), project.star, overwrite=True
    )
    blocks = starfile.read(project.star)
    assert blocks["optics"]["rlnVoltage"].tolist() == [200.0, 300.0]
    assert blocks["optics"]["rlnMtfFileName"].tolist() == ["mtf.star"] * 2
    assert blocks["particles"]["rlnOpticsGroup"].tolist() == (HALF + 1).tolist()
    assert blocks["optics"]["rlnOpticsGroupName"].is_unique


def test_a_ctf_that_is_the_same_leaves_every_byte(project):
    stack = read_particles(project.write())
    plain, other = project.folder / "plain.star", project.folder / "other.star"
    write_particles(stack.with_ctf(None), plain)
    write_particles(changed_ctf(stack, voltage_volts=300e3 + 1e-4), other)
    assert other.read_bytes() == plain.read_bytes()


def test_extra_columns(project):
    stack = read_particles(project.write())
    latent = np.random.default_rng(0).normal(size=(9, 2))
    write_particles(
        stack,
        project.folder / "out.star",
        columns={
            "_latent1": latent[:, 0],
            "latent2": latent[:, 1],
            "rlnMaxValueProbDistribution": np.ones(9),
        },
    )
    found = read_particles(project.folder / "out.star").metadata
    np.testing.assert_array_equal(found[["latent1", "latent2"]], latent)
    assert set(found["rlnMaxValueProbDistribution"]) == {1.0}


def test_labels_of_nobody_become_class_zero(project):
    stack = read_particles(project.write())
    write_particles(stack, project.folder / "out.star", labels=np.arange(9) - 1)
    assert starfile.read(project.folder / "out.star")["particles"]["rlnClassNumber"].tolist() == list(
        range(9)
    )


# ------------------------------------------------------------------------------------ new files
def test_a_stack_in_memory_is_written_with_its_images(in_memory, tmp_path):
    write_particles(in_memory, tmp_path / "sim.star", labels=np.arange(6))
    stack = read_particles(tmp_path / "sim.star")
    np.testing.assert_array_equal(stack.read(), in_memory.read())
    assert stack.pixel_size == 2.5
    for name in (
        "defocus_u_angstrom",
        "voltage_volts",
        "cs_angstrom",
        "amplitude_contrast",
        "phase_shift_rad",
    ):
        np.testing.assert_allclose(getattr(stack.ctf, name), getattr(in_memory.ctf, name), atol=1e-6)
    np.testing.assert_allclose(stack.poses.angle_rad, in_memory.poses.angle_rad, atol=1e-7)
    np.testing.assert_allclose(stack.poses.shift, in_memory.poses.shift, atol=1e-6)
    np.testing.assert_array_equal(stack.noise_group, in_memory.noise_group)
    np.testing.assert_array_equal(stack.metadata["score"], in_memory.metadata["score"])
    assert stack.metadata["good"].tolist() == [1, 0] * 3
    assert len(stack.optics) == 2  # one for each voltage


def test_a_stack_without_anything_is_written_too(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    write_particles(ParticleStack(images, poses=Poses.identity(3)), tmp_path / "a.star")
    stack = read_particles(tmp_path / "a.star", ctf=False)
    np.testing.assert_array_equal(stack.read(), images)
    assert (stack.pixel_size, stack.ctf) == (None, None)
    assert len(stack.poses) == 3


def test_preprocessed_images_are_written_on_request(project):
    stack = read_particles(project.write())
    small = stack.invert_contrast().downsample(4)
    write_particles(small, project.folder / "small.star", write_images=True)
    again = read_particles(project.folder / "small.star")
    np.testing.assert_array_equal(again.read(), small.read())
    assert (again.pixel_size, again.box) == (4.0, 4)
    np.testing.assert_array_equal(again.poses.shift, stack.poses.shift)
    assert again.metadata["rlnImageOriginalName"].tolist() == stack.metadata["rlnImageName"].tolist()


def test_preprocessed_images_of_an_old_project_know_their_pixel_size(project):
    stack = read_particles(project.write(version="1.x")).downsample(4)
    write_particles(stack, project.folder / "small.star", write_images=True)
    again = read_particles(project.folder / "small.star")
    assert again.pixel_size == pytest.approx(4.0)
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift, atol=1e-5)


def test_images_on_disk_already_are_named_where_they_are(project, tmp_path):
    from sklearn_cryoem.particles.file_source import FileSource
    from sklearn_cryoem.particles.mrc_files import inspect_mrc

    files = [inspect_mrc(path) for path in project.stacks]
    stack = ParticleStack(FileSource(files, [1, 0, 0], [3, 4, 0]), pixel_size=2.0)
    for path in (project.folder / "out.star", tmp_path / "away.star"):
        write_particles(stack, path)
        np.testing.assert_array_equal(read_particles(path, ctf=False).read(), project.images[[8, 4, 0]])
        assert not path.with_suffix(".mrcs").exists()
    names = starfile.read(project.folder / "out.star")["particles"]["rlnImageName"]
    assert names[0] == "000004@Extract/Movies/b.mrcs"


def test_a_slice_of_a_mapped_stack_is_written_anew(project):
    mapped = np.memmap(project.stacks[0], dtype="<f4", mode="r", offset=1024, shape=(5, 8, 8))[2:]
    write_particles(ParticleStack(mapped, pixel_size=2.0), project.folder / "out.star")
    np.testing.assert_array_equal(
        read_particles(project.folder / "out.star", ctf=False).read(), project.images[2:5]
    )


def test_images_alone(project, in_memory, tmp_path):
    write_particles(in_memory, tmp_path / "x.mrcs")
    array, pixel_size = read_mrc(tmp_path / "x.mrcs")
    np.testing.assert_array_equal(array, in_memory.read())
    assert pixel_size == pytest.approx(2.5)
    with pytest.raises(ParticleDataError, match=r"holds no labels or columns. Write a .star file"):
        write_particles(in_memory, tmp_path / "y.mrcs", labels=np.zeros(6, int))


# ------------------------------------------------------------------------------------ cryoSPARC
def cryosparc_stack(shared_data):
    folder = shared_data / "metadata" / "cryosparc"
    path = folder / "cryosparc_J2_particles_exported.cs"
    return read_particles(path, metadata_only=True), np.load(path)


def test_every_cryosparc_field_comes_back_row_filtered(shared_data, tmp_path):
    stack, records = cryosparc_stack(shared_data)
    rows = [20, 3, 4]
    write_particles(stack[rows], tmp_path / "out.cs")
    found = np.load(tmp_path / "out.cs")
    assert found.dtype.names == records.dtype.names
    for name in records.dtype.names:
        np.testing.assert_array_equal(found[name], records[name][rows])
        assert found[name].dtype.kind == records[name].dtype.kind


def test_a_changed_ctf_of_a_cryosparc_table_is_written(shared_data, tmp_path):
    stack = cryosparc_stack(shared_data)[0]
    write_particles(stack.with_ctf(None), tmp_path / "plain.cs")
    write_particles(stack, tmp_path / "same.cs")
    assert (tmp_path / "same.cs").read_bytes() == (tmp_path / "plain.cs").read_bytes()
    new = dataclasses.replace(
        stack.ctf, voltage_volts=np.full(len(stack), 200e3), b_factor_angstrom2=np.arange(len(stack))
    )
    write_particles(stack.with_ctf(new), tmp_path / "new.cs")
    again = read_particles(tmp_path / "new.cs", metadata_only=True).ctf
    for field in dataclasses.fields(CTFTable):
        np.testing.assert_allclose(getattr(again, field.name), getattr(new, field.name), rtol=1e-6)


def test_cryosparc_poses_labels_and_columns(shared_data, tmp_path):
    stack, _ = cryosparc_stack(shared_data)
    new = stack.with_poses(Poses(np.linspace(-3, 3, 22), np.random.default_rng(0).normal(size=(22, 2))))
    write_particles(new, tmp_path / "out.cs", labels=np.arange(22), columns={"latent": np.arange(22) / 3})
    found = np.load(tmp_path / "out.cs")
    assert found["alignments2D/class"].tolist() == list(range(22))
    np.testing.assert_array_equal(found["sklearn_cryoem/latent"], np.arange(22) / 3)
    again = read_particles(tmp_path / "out.cs", metadata_only=True)
    np.testing.assert_allclose(again.poses.angle_rad, new.poses.angle_rad, rtol=1e-6)
    np.testing.assert_allclose(again.poses.shift, new.poses.shift, rtol=1e-5)


def test_mirrored_images_cannot_be_written_as_cs(tmp_path):
    metadata = pd.DataFrame({"uid": np.arange(3, dtype=np.uint64)})
    poses = Poses(np.zeros(3), np.zeros((3, 2)), [True, False, True])
    stack = ParticleStack(np.ones((3, 8, 8), np.float32), poses=poses, metadata=metadata)
    with pytest.raises(ParticleDataError, match=r"2 of the 3 images are mirrored.*\.star"):
        write_particles(stack, tmp_path / "out.cs")
    assert not list(tmp_path.iterdir())
    write_particles(stack.with_poses(None), tmp_path / "out.cs", labels=[0, 1, 0])
    assert np.load(tmp_path / "out.cs")["alignments2D/class"].tolist() == [0, 1, 0]


def test_cryosparc_particles_as_a_star_file(shared_data, tmp_path):
    stack, records = cryosparc_stack(shared_data)
    with pytest.warns(ParticleDataWarning, match=r"not written: alignments2D/error, .*Keep the input file"):
        write_particles(stack, tmp_path / "out.star")
    again = read_particles(tmp_path / "out.star", metadata_only=True)
    np.testing.assert_allclose(again.ctf.defocus_u_angstrom, stack.ctf.defocus_u_angstrom, atol=1e-5)
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift, atol=1e-5)
    assert again.pixel_size == pytest.approx(stack.pixel_size)
    assert again.metadata["rlnImageName"][0].startswith("000001@J1/imported/0000903347882662660")
    assert again.metadata["rlnClassNumber"].tolist() == (records["alignments2D/class"] + 1).tolist()
    assert again.metadata["cryosparcUid"].tolist() == records["uid"].tolist()


def test_particles_in_memory_cannot_be_written_as_cs(in_memory, tmp_path):
    with pytest.raises(ParticleDataError, match=r"Write a .star file first"):
        write_particles(in_memory, tmp_path / "x.cs")
    with pytest.raises(ParticleDataError, match=r"a .cs file keeps its images"):
        write_particles(in_memory, tmp_path / "x.cs", write_images=True)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ safety
def test_nothing_is_overwritten_unasked(in_memory, tmp_path):
    write_particles(in_memory, tmp_path / "a.star")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("a.star", "a.mrcs"):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            write_particles(in_memory[:2], tmp_path / name)
    (tmp_path / "a.star").unlink()
    with pytest.raises(FileExistsError, match=r"a.mrcs exists.*overwrite=True"):
        write_particles(in_memory[:2], tmp_path / "a.star")
    assert (tmp_path / "a.mrcs").read_bytes() == before["a.mrcs"]
    write_particles(in_memory[:2], tmp_path / "a.star", overwrite=True)
    assert len(read_particles(tmp_path / "a.star")) == 2


def test_an_error_while_writing_leaves_nothing_behind(in_memory, tmp_path):
    images = in_memory.read().copy()
    images[4, 0, 0] = np.nan
    broken = ParticleStack(images, pixel_size=1.0)
    for name in ("a.star", "a.mrcs"):
        with pytest.raises(ParticleDataError, match="image 4 of the array"):
            write_particles(broken, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_stack_may_be_written_over_the_file_it_was_read_from(in_memory, tmp_path):
    write_particles(in_memory, tmp_path / "a.star")
    stack = read_particles(tmp_path / "a.star")
    write_particles(stack[::-1], tmp_path / "a.star", write_images=True, overwrite=True)
    np.testing.assert_array_equal(read_particles(tmp_path / "a.star").read(), in_memory.read()[::-1])


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"labels": np.zeros(5, int)}, "Give one label for each particle"),
        ({"labels": np.zeros(6)}, "expected \\(6,\\) integers"),
        ({"labels": np.full(6, -2)}, "integers from 0"),
        ({"columns": {"x": np.zeros(5)}}, "one value for each particle"),
        ({"columns": {"two words": np.zeros(6)}}, "names have no spaces. Use underscores"),
        ({"columns": {"": np.zeros(6)}}, "Use underscores"),
    ],
)
def test_labels_and_columns_must_fit(in_memory, tmp_path, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        write_particles(in_memory, tmp_path / "a.star", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_file_must_be_known_and_its_folder_there(in_memory, tmp_path):
    with pytest.raises(ParticleDataError, match="Change the suffix"):
        write_particles(in_memory, tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        write_particles(in_memory, tmp_path / "no" / "a.star")
    with pytest.raises(ParticleDataError, match=r"Leave write_images=None"):
        write_particles(in_memory, tmp_path / "a.star", write_images=False)


# ------------------------------------------------------------------------------------ RELION reads it
@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
@pytest.mark.parametrize("version", ["3.1", "1.x", "in memory", "mirrored"])
def test_relion_reads_what_we_write(project, in_memory, tmp_path, version):
    stack = in_memory
    if version == "mirrored":
        poses = in_memory.poses
        stack = in_memory.with_poses(Poses(poses.angle_rad, poses.shift, [True, False, False] * 2))
    elif version != "in memory":
        stack = read_particles(project.write(version=version))
    labels = np.arange(len(stack)) % 3
    write_particles(stack, tmp_path / "ours.star", labels=labels)
    subprocess.run(
        ["relion_star_handler", "--i", "ours.star", "--o", "theirs.star"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    theirs = read_particles(tmp_path / "theirs.star", metadata_only=True)
    assert theirs.metadata["rlnClassNumber"].tolist() == (labels + 1).tolist()
    np.testing.assert_allclose(theirs.ctf.defocus_u_angstrom, stack.ctf.defocus_u_angstrom, atol=1e-2)
    np.testing.assert_allclose(theirs.ctf.voltage_volts, stack.ctf.voltage_volts)
    np.testing.assert_allclose(theirs.poses.angle_rad, stack.poses.angle_rad, atol=1e-5)
    np.testing.assert_allclose(theirs.poses.shift, stack.poses.shift, atol=1e-4)
    np.testing.assert_array_equal(theirs.poses.mirrored, stack.poses.mirrored)
    assert theirs.pixel_size == pytest.approx(stack.pixel_size)
    assert theirs.metadata["rlnImageName"].tolist() == starfile_names(tmp_path / "ours.star")


def starfile_names(path):
    blocks = starfile.read(path, always_dict=True)
    return blocks.get("particles", blocks.get(""))["rlnImageName"].tolist()


# ------------------------------------------------------------------------------------ joined stacks
@pytest.mark.filterwarnings("ignore:.*another row named before")  # one of them names every image twice
def test_one_name_for_two_files_of_a_joined_stack_becomes_two(in_memory, tmp_path):
    parts = []
    for place, rows in [("a", slice(0, 4)), ("b", slice(4, 6))]:
        (tmp_path / place).mkdir()
        write_particles(in_memory[rows], tmp_path / place / "p.star")
        parts.append(read_particles(tmp_path / place / "p.star"))
    assert set(parts[0].metadata["rlnImageName"]) & set(parts[1].metadata["rlnImageName"])
    for joined in (concatenate(parts), concatenate(parts).invert_contrast(), concatenate([*parts, *parts])):
        path = tmp_path / "a" / "joined.star"  # where the names alone would all find a/p.mrcs
        write_particles(joined, path, overwrite=True)
        found = read_particles(path).read()
        np.testing.assert_array_equal(found, np.resize(in_memory.read(), joined.shape))


def test_names_that_stay_clear_are_kept_when_stacks_are_joined(project):
    stack = read_particles(project.write())
    path = project.folder / "Extract" / "joined.star"
    write_particles(concatenate([stack[6:], stack[:2]]), path)
    expected = stack.metadata["rlnImageName"].iloc[[6, 7, 8, 0, 1]].tolist()
    assert read_particles(path).metadata["rlnImageName"].tolist() == expected


def test_images_from_no_file_are_written_with_those_they_were_joined_to(in_memory, tmp_path):
    write_particles(in_memory[:4], tmp_path / "p.star")
    joined = concatenate([read_particles(tmp_path / "p.star"), in_memory[4:]])
    write_particles(joined, tmp_path / "joined.star")
    np.testing.assert_array_equal(read_particles(tmp_path / "joined.star").read(), in_memory.read())


@pytest.mark.parametrize("name", ["none.star", "none.mrcs"])
def test_no_image_is_no_file(in_memory, tmp_path, name):
    with pytest.raises(ParticleDataError, match=r"no image to write. Give a stack with particles"):
        write_particles(in_memory[:0], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_were_changed_in_memory_are_written_not_the_names_they_had(project):
    stack = read_particles(project.write())
    changed = ParticleStack(
        2 * stack.read(), pixel_size=stack.pixel_size, ctf=stack.ctf, metadata=stack.metadata,
        optics=stack.optics, optics_group=stack.optics_group,
    )  # fmt: skip
    path = project.folder / "Extract" / "changed.star"
    with pytest.raises(ParticleDataError, match=r"in no MRC file.*Leave write_images=None"):
        write_particles(changed, path, write_images=False)
    write_particles(changed, path)
    again = read_particles(path)
    np.testing.assert_array_equal(again.read(), 2 * stack.read())
    assert again.metadata["rlnImageOriginalName"].tolist() == stack.metadata["rlnImageName"].tolist()
