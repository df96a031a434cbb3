import logging
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_particles, write_particles
from sklearn_cryoem.io.cryosparc_file import records_to_table, table_to_records
from sklearn_cryoem.particles import Poses, class_labels
from sklearn_cryoem.physics.rotation import euler_of_rotation_vector

pytestmark = pytest.mark.filterwarnings("ignore:.*ctf/tetra_A are kept, but not used")

FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    *[(f"blob/{name}", "<f4") for name in ("psize_A", "sign")],
    ("ctf/exp_group_id", "<u4"),
    *[
        (f"ctf/{name}", "<f4")
        for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad")
    ],
    *[(f"ctf/{name}", "<f4") for name in ("phase_shift_rad", "scale", "bfactor")],
    ("ctf/tetra_A", "<f4", (4,)),
    ("alignments2D/pose", "<f4"),
    ("alignments2D/shift", "<f4", (2,)),
    ("alignments2D/psize_A", "<f4"),
    ("alignments2D/class", "<u4"),
]


@pytest.fixture
def records(project):
    """A table like cryoSPARC's of the project's nine images."""
    rows = np.arange(9)
    table = np.zeros(9, dtype=FIELDS)
    table["uid"] = 10**18 + 7 * rows
    table["blob/path"] = [b">Extract/Movies/a.mrcs"] * 5 + [b">Extract/Movies/b.mrcs"] * 4
    table["blob/idx"] = [0, 1, 2, 3, 4, 0, 1, 2, 3]
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 8, 2.0, -1
    table["ctf/exp_group_id"] = 3
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["ctf/df1_A"], table["ctf/df2_A"], table["ctf/df_angle_rad"] = 15000 + rows, 14000 + rows, 0.1 * rows
    table["ctf/phase_shift_rad"], table["ctf/scale"], table["ctf/bfactor"] = 0.2, 0.9, 30
    table["ctf/tetra_A"] = np.arange(36).reshape(9, 4)
    table["alignments2D/pose"], table["alignments2D/psize_A"] = 0.3 * rows, 4.0
    table["alignments2D/shift"] = np.column_stack([rows, -rows]) / 4
    table["alignments2D/class"] = rows % 2
    return table


@pytest.fixture
def save_cs(project):
    """Function that writes records as a .cs file beside the images."""

    def save(records, name="particles.cs"):
        path = project.folder / name
        with open(path, "wb") as file:
            np.save(file, records)
        return path

    return save


def without(records, *prefixes):
    return records[[name for name in records.dtype.names if not name.startswith(prefixes)]].copy()


def test_a_table_gives_images_ctf_and_poses_in_our_units(project, records, save_cs):
    stack = read_particles(save_cs(records))
    np.testing.assert_array_equal(stack.read(), project.images)
    rows = np.arange(9)
    assert stack.pixel_size == 2.0
    np.testing.assert_allclose(stack.ctf.defocus_u_angstrom, 15000 + rows)
    np.testing.assert_allclose(stack.ctf.defocus_v_angstrom, 14000 + rows)
    np.testing.assert_allclose(stack.ctf.astigmatism_angle_rad, 0.1 * rows, rtol=1e-6)
    assert set(stack.ctf.voltage_volts) == {300e3}
    np.testing.assert_allclose(stack.ctf.cs_angstrom, 2.7e7, rtol=1e-6)
    np.testing.assert_allclose(stack.ctf.phase_shift_rad, 0.2, rtol=1e-6)
    np.testing.assert_allclose(stack.ctf.scale, 0.9, rtol=1e-6)
    assert set(stack.ctf.b_factor_angstrom2) == {30.0}
    assert set(stack.optics_group) == {3}
    assert stack.noise_group.tolist() == [0] * 5 + [1] * 4
    np.testing.assert_allclose(stack.poses.angle_rad, 0.3 * rows, rtol=1e-6)
    np.testing.assert_allclose(
        stack.poses.shift, 4.0 * np.column_stack([rows, -rows]) / 4
    )  # alignment's own pixels


def test_shifts_without_a_pixel_size_of_their_own_are_in_image_pixels(records, save_cs):
    stack = read_particles(save_cs(without(records, "alignments2D/psize_A")))
    np.testing.assert_allclose(stack.poses.shift[:, 0], 0.5 * np.arange(9))


def test_shifts_of_a_table_without_any_pixel_size_are_pixels_never_zero(records, save_cs):
    """They were multiplied by 0 once."""
    rows = np.arange(9)
    table = without(records, "alignments2D/psize_A", "blob/psize_A", "ctf/")
    with pytest.warns(ParticleDataWarning, match="taking 2 A from the headers"):
        stack = read_particles(save_cs(table), ctf=False)
    np.testing.assert_allclose(stack.poses.shift, 2.0 * np.column_stack([rows, -rows]) / 4)
    stack = read_particles(save_cs(table), ctf=False, pixel_size=3.0)
    np.testing.assert_allclose(stack.poses.shift, 3.0 * np.column_stack([rows, -rows]) / 4)
    stack = read_particles(save_cs(table), ctf=False, metadata_only=True)
    assert stack.pixel_size is None
    np.testing.assert_allclose(stack.poses.shift, np.column_stack([rows, -rows]) / 4)
    records["alignments2D/psize_A"][3] = 0
    with pytest.raises(ParticleDataError, match=r"is missing or 0 for 1 of the 9 .* Pass passthrough="):
        read_particles(save_cs(without(records, "blob/psize_A")))
    stack = read_particles(save_cs(records))  # the images have one: theirs is taken
    assert stack.poses.shift[3].tolist() == [1.5, -1.5] and stack.poses.shift[4].tolist() == [4.0, -4.0]


def test_poses_of_unknown_pixel_size_are_written_without_one(records, save_cs, tmp_path):
    table = without(records, "alignments2D/", "blob/psize_A", "ctf/")
    stack = read_particles(save_cs(table), ctf=False, metadata_only=True)
    poses = Poses(np.linspace(-3, 3, 9), np.random.default_rng(0).normal(size=(9, 2)))
    write_particles(stack.with_poses(poses), tmp_path / "out.cs")
    assert "alignments2D/psize_A" not in np.load(tmp_path / "out.cs").dtype.names
    again = read_particles(tmp_path / "out.cs", ctf=False, metadata_only=True)
    np.testing.assert_allclose(again.poses.shift, poses.shift, rtol=1e-6)


def relion_euler_matrix(rot, tilt, psi):
    """RELION's matrix: its rows are the image's axes in the frame of the map."""
    return Rotation.from_euler("ZYZ", [rot, tilt, psi]).as_matrix().T


@pytest.mark.parametrize("tilt", [0.0, 0.4, 1.5, 3.0, np.pi])
def test_psi_of_a_3d_pose_is_relion_s(records, save_cs, tilt):
    generator = np.random.default_rng(0)
    psi = generator.uniform(-3, 3, 9)
    rot = generator.uniform(-3, 3, 9) if 0 < tilt < np.pi else np.zeros(9)
    matrices = np.stack([relion_euler_matrix(a, tilt, b) for a, b in zip(rot, psi, strict=True)])
    table = without(records, "alignments2D")
    new = np.zeros(
        9, dtype=[*table.dtype.descr, ("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,))]
    )
    for name in table.dtype.names:
        new[name] = table[name]
    new["alignments3D/pose"] = Rotation.from_matrix(matrices.transpose(0, 2, 1)).as_rotvec()
    found = read_particles(save_cs(new)).poses.angle_rad
    np.testing.assert_allclose(np.angle(np.exp(1j * (found - psi))), 0, atol=2e-6 if 0 < tilt < 3.1 else 1e-3)


def test_every_field_is_a_column_and_back(records):
    table = records_to_table(records)
    assert {"uid", "ctf/tetra_A[3]", "blob/shape[0]", "alignments2D/shift[1]"} <= set(table.columns)
    again = table_to_records(table)
    assert again.dtype.names == records.dtype.names
    for name in records.dtype.names:
        np.testing.assert_array_equal(again[name], records[name])


def test_fields_with_matrices_and_single_columns_are_a_column_and_back():
    records = np.zeros(3, dtype=[("a", "<f8", (2, 3)), ("b", "<i4", (1,)), ("c", "U5")])
    records["a"] = np.arange(18).reshape(3, 2, 3)
    records["c"] = ["x", "", "yé"]
    again = table_to_records(records_to_table(records))
    np.testing.assert_array_equal(again["a"], records["a"])
    assert again["b"].shape == (3, 1)
    assert [value.decode() for value in again["c"]] == ["x", "", "yé"]


def test_a_passthrough_file_is_joined_by_uid(project, records, save_cs):
    main = save_cs(without(records, "blob/", "ctf/df"), "J1_particles.cs")
    through = save_cs(records[np.random.default_rng(0).permutation(9)], "J1_passthrough_particles.cs")
    with pytest.raises(ParticleDataError, match=r"Pass passthrough=.*perhaps J1_passthrough_particles.cs"):
        read_particles(main)
    stack = read_particles(main, passthrough=through)
    np.testing.assert_array_equal(stack.read(), project.images)
    np.testing.assert_allclose(stack.ctf.defocus_u_angstrom, 15000 + np.arange(9))
    fewer = save_cs(records[:4], "fewer.cs")
    with pytest.raises(ParticleDataError, match=r"fewer.cs: lacks 5 of the 9 particles.*from the same job"):
        read_particles(main, passthrough=fewer)
    with pytest.raises(ParticleDataError, match=r"gone.cs: no such file"):
        read_particles(main, passthrough=project.folder / "gone.cs")
    with pytest.raises(ParticleDataError, match=r"no field uid in .*none.cs. Export it again"):
        read_particles(main, passthrough=save_cs(without(records, "uid"), "none.cs"))


def test_a_group_is_followed_to_its_files(project, records, save_cs):
    save_cs(without(records, "blob/"), "P_particles.cs")
    save_cs(records, "P_passthrough_particles.cs")
    group = project.folder / "P_particles.csg"
    group.write_text(
        "group:\n  name: particles\n  type: particle\nresults:\n"
        "  blob:\n    metafile: '>P_passthrough_particles.cs'\n  ctf:\n    metafile: '>P_particles.cs'\n"
    )
    np.testing.assert_array_equal(read_particles(group).read(), project.images)
    (project.folder / "P_particles.cs").unlink()
    with pytest.raises(ParticleDataError, match=r"not there, though.*P_particles.cs. Copy all files"):
        read_particles(group)
    group.write_text("nothing\n")
    with pytest.raises(ParticleDataError, match="no cryoSPARC group, not of particles"):
        read_particles(group)


def test_dark_particles_are_mentioned(records, save_cs, caplog):
    with caplog.at_level(logging.INFO, logger="sklearn_cryoem"):
        read_particles(save_cs(records))
    assert "invert=True whitens them" in caplog.text


@pytest.mark.parametrize("name", ["ctf/df1_A", "ctf/accel_kv", "ctf/df_angle_rad"])
def test_a_missing_ctf_field_is_named(records, save_cs, name):
    path = save_cs(without(records, name))
    with pytest.raises(
        ParticleDataError, match=rf"particles.cs: no field {name}. Pass passthrough=.*ctf=False"
    ):
        read_particles(path)
    assert read_particles(path, ctf=False).ctf is None


@pytest.mark.parametrize(
    ("spoil", "row", "message"),
    [
        (lambda r: r["ctf/df1_A"].__setitem__(3, -5), 3, "particle 4: defocus U is -5 A"),
        (
            lambda r: r["blob/idx"].__setitem__(6, 40),
            6,
            "particle 7: 000041@Extract/Movies/b.mrcs does not exist",
        ),
        (
            lambda r: r["blob/path"].__setitem__(1, b"J1/no.mrc"),
            1,
            "particle 2: image stack J1/no.mrc not found",
        ),
        (lambda r: r["blob/shape"].__setitem__(2, 16), 2, "particle 3: wrong box: .* the metadata say 16"),
        (lambda r: r["blob/psize_A"].__setitem__(8, np.nan), 8, "particle 9: the pixel size is missing"),
    ],
)
def test_bad_particles_are_refused_or_reported(project, records, save_cs, spoil, row, message):
    spoil(records)
    path = save_cs(records)
    with pytest.raises(ParticleDataError, match=message):
        read_particles(path)
    stack, report = read_particles(path, permissive=True)
    assert report["particle"].tolist() == [row + 1]
    np.testing.assert_array_equal(stack.read(), np.delete(project.images, row, axis=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty. Copy or export it again"),
        (b"\x95CSDAT" + bytes(50), r"compressed cryoSPARC stream.*Dataset.load"),
        (b"text, no table", "not a cryoSPARC table, but plain text. Give the file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "cannot be read as a cryoSPARC table .*Copy or export it again"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    path = tmp_path / "x.cs"
    path.write_bytes(content)
    with pytest.raises(ParticleDataError, match=rf"x\.cs: .*{message}"):
        read_particles(path)


def test_plain_arrays_and_other_tables_are_refused(records, save_cs):
    with pytest.raises(ParticleDataError, match="an array without named fields"):
        read_particles(save_cs(np.zeros((3, 4))))
    with pytest.raises(ParticleDataError, match=r"a table of a volume, not .* \(fields: map\). Read the map"):
        read_particles(save_cs(np.zeros(1, dtype=[("uid", "u8"), ("map/path", "S9")])))
    with pytest.raises(ParticleDataError, match="holds no particle"):
        read_particles(save_cs(records[:0]))


# ------------------------------------------------------------------------------------ files of a job
def extended(records, *fields):
    """The same table with more fields: (name, type, values)."""
    new = np.zeros(len(records), dtype=[*records.dtype.descr, *[(name, kind) for name, kind, _ in fields]])
    for name in records.dtype.names:
        new[name] = records[name]
    for name, _, values in fields:
        new[name] = values
    return new


def test_alignment_images_and_ctf_may_lie_in_three_files(project, records, save_cs):
    order = np.random.default_rng(0).permutation(9)
    main = save_cs(without(records, "blob/", "ctf/", "location/"), "cryosparc_P9_J2_020_particles.cs")
    images = save_cs(
        records[["uid", *[n for n in records.dtype.names if n.startswith("blob/")]]][order], "b.cs"
    )
    ctf = save_cs(records[["uid", *[n for n in records.dtype.names if n.startswith("ctf/")]]][::-1], "c.cs")
    with pytest.raises(ParticleDataError, match=r"no field ctf/df1_A.*Pass passthrough= the file"):
        read_particles(main, passthrough=images)
    for several in ([images, ctf], (str(ctf), str(images))):
        stack = read_particles(main, passthrough=several)
        np.testing.assert_array_equal(stack.read(), project.images)
        np.testing.assert_allclose(stack.ctf.defocus_u_angstrom, 15000 + np.arange(9))
        np.testing.assert_allclose(stack.poses.angle_rad, 0.3 * np.arange(9), rtol=1e-6)


def test_only_tables_of_cryosparc_are_joined(project, records, save_cs):
    with pytest.raises(ParticleDataError, match=r"particles.star: passthrough= adds fields .*Leave it out"):
        read_particles(project.write(), passthrough=save_cs(records))


def test_the_file_proposed_is_of_the_same_job_and_has_the_field(project, records, save_cs):
    main = save_cs(without(records, "blob/"), "cryosparc_P9_J2_020_particles.cs")
    save_cs(records, "P9_J21_passthrough_particles.cs")
    save_cs(without(records, "blob/"), "P9_J2_passthrough_particles_0.cs")
    (project.folder / "P9_J2_passthrough_particles_1.cs").write_bytes(b"damaged")
    with pytest.raises(ParticleDataError, match=r"passthrough file of the same job\.$"):
        read_particles(main)
    save_cs(records, "P9_J2_passthrough_particles_2.cs")
    with pytest.raises(ParticleDataError, match=r"perhaps P9_J2_passthrough_particles_2.cs"):
        read_particles(main)


def test_uids_name_one_particle_each(records, save_cs):
    main = save_cs(without(records, "blob/"), "main.cs")
    records["uid"][4] = records["uid"][1]
    with pytest.raises(ParticleDataError, match=r"twice.cs: 1 uids are there more.*Export it again"):
        read_particles(main, passthrough=save_cs(records, "twice.cs"))
    path = save_cs(records)
    with pytest.raises(ParticleDataError, match=r"particle 5: its uid 1000000000000000007 is that of"):
        read_particles(path)
    assert len(read_particles(path, permissive=True)[0]) == 8


@pytest.mark.parametrize("n_fields", [300, 2000])
def test_tables_of_many_fields_are_read_and_written(records, save_cs, tmp_path, n_fields):
    """numpy reads headers up to 10,000 bytes unless it is told otherwise, and warns above 65,535."""
    values = np.random.default_rng(0).normal(size=(n_fields, 9)).astype(np.float32)
    more = [(f"alignments_class_{i}/class_posterior", "<f4", row) for i, row in enumerate(values)]
    stack = read_particles(save_cs(extended(records, *more)) if n_fields < 1000 else save_cs(records))
    table = {name: column for name, _, column in more}
    write_particles(stack, tmp_path / "out.cs", columns=table, overwrite=True)
    again = read_particles(tmp_path / "out.cs", metadata_only=True)
    np.testing.assert_array_equal(again.metadata[list(table)].to_numpy().T, values)
    found = np.load(tmp_path / "out.cs", max_header_size=10**6)
    np.testing.assert_array_equal(found[more[-1][0]], values[-1])


@pytest.mark.parametrize("quote", ["'>{}'", '">{}"', ">-\n      >{}", "'{}'", "{}"])
def test_a_group_is_yaml_however_it_is_quoted(project, records, save_cs, quote):
    save_cs(without(records, "blob/"), "P with space_particles.cs")
    save_cs(records, "P_passthrough_particles.cs")
    group = project.folder / "P.csg"
    first, second = quote.format("P_passthrough_particles.cs"), quote.format("P with space_particles.cs")
    group.write_text(
        "created: 2021-06-10 00:55:14.794530\ngroup: {name: particles, type: particle}\nresults:\n"
        f"  blob:\n    metafile: {first}\n    num_items: 9\n  ctf:\n    metafile: {second}\n"
    )
    np.testing.assert_array_equal(read_particles(group).read(), project.images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "group: {type: volume}\n",
            "a group of type volume, not of particles. Give the group",
        ),
        ("group: [", "cannot be read as YAML .*. Copy or export it again"),
        ("- a\n- b\n", "no cryoSPARC group, not of particles. Give"),
        ("group: {type: particle}\nresults: {}\n", "refers to it: any file. Copy all files"),
        ("version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer.*git lfs pull"),
    ],
)
def test_groups_that_are_none(tmp_path, text, message):
    (tmp_path / "x.csg").write_text(text)
    with pytest.raises(ParticleDataError, match=rf"x\.csg: .*{message}"):
        read_particles(tmp_path / "x.csg")


def test_a_group_without_pyyaml_says_how_to_do_without(tmp_path, monkeypatch):
    (tmp_path / "x.csg").write_text("group: {type: particle}\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ParticleDataError, match=r"PyYAML is not there. Install it.*give the \.cs file"):
        read_particles(tmp_path / "x.csg")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["micrograph_blob/path", "ctf/df1_A", "mscope_params/accel_kv"],
            "exposures, movies or.*Extract part",
        ),
        (["movie_blob/path", "gain_ref_blob/path"], "exposures, movies or micrographs.*Extract particles"),
        (["map/path", "map/psize_A"], "a table of a volume.*Read the map"),
        (["location/center_x_frac", "pick_stats/ncc_score"], "a table of picks.*Extract the particles first"),
        (["ctf/df1_A", "location/center_x_frac"], "no field blob/path.*Pass passthrough="),
        (["something/else"], "this is not a table of particles.*Give the particles of a job"),
    ],
)
def test_tables_of_other_things_are_named(save_cs, fields, message):
    with pytest.raises(ParticleDataError, match=message):
        read_particles(save_cs(np.ones(2, dtype=[("uid", "u8"), *[(name, "f4") for name in fields]])))


def test_an_alignment_of_zeros_was_never_made(records, save_cs):
    vectors = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    shift = np.ones((9, 2))
    new = extended(records, ("alignments3D/pose", "3<f4", vectors), ("alignments3D/shift", "2<f4", shift))
    np.testing.assert_allclose(read_particles(save_cs(new)).poses.angle_rad, 0.3 * np.arange(9), rtol=1e-6)
    new["alignments2D/pose"], new["alignments2D/shift"] = 0, 0
    poses = read_particles(save_cs(new)).poses
    np.testing.assert_allclose(poses.angle_rad, euler_of_rotation_vector(vectors)[:, 2])
    np.testing.assert_allclose(poses.shift, 2.0)


def test_real_refinement(shared_data):
    path = shared_data / "metadata" / "cryosparc" / "t20s_J209" / "cryosparc_P9_J209_000_particles.cs"
    stack = read_particles(path, metadata_only=True)
    raw = np.load(path)
    assert len(stack.metadata.columns) == sum(
        int(np.prod(raw.dtype[name].shape)) or 1 for name in raw.dtype.names
    )
    assert (stack.box, len(np.unique(stack.noise_group))) == (256, 196)
    np.testing.assert_allclose(stack.poses.shift, raw["alignments3D/shift"] * 1.0273438, rtol=1e-6)


def _renamed(records, **names):
    return records.astype(
        [(names.get(n.replace("/", "_"), n), records.dtype[n]) for n in records.dtype.names]
    )


def _with(records, name, row, value):
    records[name][row] = value
    return records


def _with_field(records, *field):
    names = [name for name in records.dtype.names if name != field[0]]
    table = np.zeros(len(records), dtype=[*((name, records.dtype[name]) for name in names), field])
    for name in names:
        table[name] = records[name]
    return table


def _cast(records, name, dtype):
    return records.astype([(n, dtype if n == name else records.dtype[n]) for n in records.dtype.names])


REFUSED = {  # what is wrong with a table: how to make it, and what is said
    "two dimensions": (
        lambda r: r.reshape(-1, 1),
        r"array of 2 dimensions, expected a row .* export it again",
    ),
    "no dimension": (lambda r: r[0], "array of 0 dimensions"),
    "complex": (
        lambda r: _cast(r, "ctf/df1_A", "c8"),
        "field ctf/df1_A is of type complex64, expected numbers",
    ),
    "text": (lambda r: _cast(r, "blob/idx", "S4"), "field blob/idx is of type .S4, expected whole numbers"),
    "dates": (
        lambda r: _cast(r, "ctf/bfactor", "M8[s]"),
        r"expected numbers, so the table .* export it again",
    ),
    "no names": (
        lambda r: _with_field(r, "blob/path", "<u8"),
        "field blob/path is of type uint64, expected text",
    ),
    "shape": (lambda r: _with_field(r, "blob/shape", "<u4", (3,)), r"whole numbers of shape \(2,\)"),
    "half a pose": (lambda r: without(r, "alignments2D/shift"), r"shift one is missing.* leave out both"),
    "misspelt": (lambda r: _renamed(r, blob_psize_A="blob/psise_A"), "no blob/psize_A, but blob/psise_A"),
    "sign": (lambda r: _with(r, "blob/sign", 4, -999), r"blob/sign is \[-999.*particle 5.*Read them apart"),
    "no sign": (
        lambda r: _with(r, "blob/sign", 4, np.nan),
        "blob/sign is .*nan.*particle 5.*Read them",
    ),
    "mixed": (lambda r: _with(r, "blob/sign", 4, 1), "the first of the fewer is particle 5.*invert=True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tables_that_no_program_wrote_are_refused(records, save_cs, what):
    spoil, said = REFUSED[what]
    with pytest.raises(ParticleDataError, match=rf"particles.cs.*{said}"):
        read_particles(save_cs(spoil(records)), metadata_only=True)


def test_a_table_with_more_than_its_header_says_is_refused(records, save_cs):
    content = save_cs(records).read_bytes()
    for spoilt in (content.replace(b"'shape': (9,)", b"'shape': (7,)"), 2 * content):
        (path := save_cs(records)).write_bytes(spoilt)
        with pytest.raises(ParticleDataError, match=r"more than its header.* Copy or export.*concatenate"):
            read_particles(path)


def test_the_byte_order_of_other_machines_is_read(records, save_cs):
    there = read_particles(save_cs(records))
    other = read_particles(save_cs(records.astype(records.dtype.newbyteorder(">")), "other.cs"))
    np.testing.assert_array_equal(other.read(), there.read())
    np.testing.assert_array_equal(other.ctf.defocus_u_angstrom, there.ctf.defocus_u_angstrom)
    np.testing.assert_array_equal(other.poses.shift, there.poses.shift)
    assert other[2:4].metadata["uid"].tolist() == records["uid"][2:4].tolist()


def test_classes_count_without_a_uid(records, save_cs):
    stack = read_particles(save_cs(without(records, "uid")))
    assert class_labels(stack).tolist() == records["alignments2D/class"].tolist()


def test_texts_that_are_no_text_are_kept_as_they_came(records, save_cs, project):
    odd = np.array([b"\x80\xff"] * 9)
    table = _with_field(records, "ctf/type", "S4")
    table["ctf/type"] = odd
    write_particles(read_particles(save_cs(table)), project.folder / "b.cs")
    assert np.load(project.folder / "b.cs")["ctf/type"].tolist() == odd.tolist()


def test_a_place_before_the_first_image_is_refused(records, save_cs):
    table = _cast(records, "blob/idx", "i4")
    table["blob/idx"][4] = -1
    with pytest.raises(ParticleDataError, match=r"particle 5: .*does not exist, its file holds .*images_dir"):
        read_particles(save_cs(table))
