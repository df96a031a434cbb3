"""What is checked of every number, block, label and name on reading, through both kinds of tables."""

import warnings

import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem import read_particles, write_particles
from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import read_mrc, write_mrc
from sklearn_cryoem.io.checks import RANGES
from sklearn_cryoem.io.records import CRYOSPARC_CTF, RELION_CTF
from sklearn_cryoem.particles import class_labels

# What cannot be, what is odd, and what may well be, in the unit of RELION's file.
NUMBERS = {
    "defocus_u_angstrom": ([-999, 2.5e5, np.inf], [0, 1.5, 999, 99999], [1100, 15000, 79000]),
    "defocus_v_angstrom": ([-1, -999, 1e9], [0, 999, 1e5], [1100, 15000, 79000]),
    "astigmatism_angle_rad": ([-999, 999, 1e5], [], [-180, 0, 90, 359]),
    "voltage_volts": ([-999, 0, 0.3, 300000], [30, 999], [80, 100, 120, 200, 300]),
    "cs_angstrom": ([-999, 999, 2.7e7], [6, 20], [0, 0.01, 1.4, 2.7]),
    "amplitude_contrast": ([-0.1, 7, 10, -999], [0, 0.9, 1], [0.02, 0.07, 0.1, 0.15, 0.4]),
    "phase_shift_rad": ([-999, 999, 5157], [-120, 270], [0, 30, 90, 180]),
    "b_factor_angstrom2": ([-999, 1e4], [999, -300], [-50, 0, 150]),
    "scale": ([0, -1, -999, 1e6], [0.01, 999], [0.3, 1, 2]),
}


PARTNER = {"rlnDefocusU": "rlnDefocusV", "rlnDefocusV": "rlnDefocusU", "ctf/df1_A": "ctf/df2_A"}
PARTNER["ctf/df2_A"] = "ctf/df1_A"
SOUND = []  # the project as the records of a .cs file, made once


def star_with(project, name, values):
    """The project with a parameter of the CTF, one value a row, in RELION's unit."""
    label, _, _ = RELION_CTF[name]
    project.optics = project.optics.drop(columns=label, errors="ignore")
    project.particles[label] = np.resize(values, 9)
    if label in PARTNER:  # no astigmatism that would be questioned too
        project.particles[PARTNER[label]] = np.resize(np.clip(values, 1100, 79000), 9)
    return project.write()


def cs_with(project, name, values):
    """The same as a .cs file."""
    path = project.folder / "particles.cs"
    if not SOUND:
        project.particles = project.particles.drop(columns="rlnCoordinateX")  # for which there is no field
        write_particles(read_particles(project.write()), path)
        SOUND.append(np.load(path))
    records = SOUND[0].copy()
    field, theirs, _ = CRYOSPARC_CTF[name]
    records[field] = np.resize(values, 9) * (RELION_CTF[name][1] / theirs)
    if field in PARTNER:
        records[PARTNER[field]] = np.resize(np.clip(values, 1100, 79000), 9)
    with open(path, "wb") as stream:
        np.save(stream, records)
    return path


@pytest.fixture(params=[star_with, cs_with], ids=["star", "cs"])
def written(request, project):
    """Function that writes the project with a parameter of the CTF changed."""
    return lambda name, values: request.param(project, name, values)


def test_every_number_of_the_ctf_has_a_range_and_a_case():
    assert set(RELION_CTF) - {"phase_flipped", "premultiplied"} == set(CRYOSPARC_CTF) == set(NUMBERS)
    assert set(RELION_CTF) <= set(RANGES)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_cannot_be_are_refused_by_row_with_their_range(written, name):
    bad, _, good = NUMBERS[name]
    values = [good[0], *bad, *np.resize(good, 8 - len(bad))]
    path = written(name, values)
    what, found = RANGES[name].what, f"{bad[0]:g}"
    with pytest.raises(
        ParticleDataError, match=rf"{path}, particle 2.*{what} is {found}.*, expected .*ctf=False"
    ):
        read_particles(path)
    assert read_particles(path, ctf=False).ctf is None
    stack, report = read_particles(path, permissive=True)
    assert report["particle"].tolist() == [row + 2 for row in range(len(bad))]
    assert report["problem"].str.startswith(what).all()
    kept = [value for value in values if value not in bad]  # taken in silence
    np.testing.assert_allclose(getattr(stack.ctf, name), np.array(kept) * RELION_CTF[name][1], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, (_, odd, _) in NUMBERS.items() if odd])
def test_numbers_that_hardly_any_particle_has_are_questioned_and_taken(written, name):
    _, odd, good = NUMBERS[name]
    values = [good[0], *odd, *[good[0]] * 9][:9]
    path = written(name, values)
    said = (
        rf"{path}: unusual values: .* is {odd[0]:g}.*\({len(odd)} of 9, first particle 2.*in the right unit"
    )
    with pytest.warns(ParticleDataWarning, match=said) as caught:
        stack = read_particles(path)
    assert [warning.message.name for warning in caught] == ["unusual-values"]
    np.testing.assert_allclose(getattr(stack.ctf, name), np.array(values) * RELION_CTF[name][1], rtol=1e-6)


def test_phase_shifts_in_radians_for_degrees_are_questioned(project):
    path = star_with(project, "phase_shift_rad", 1.57)
    with pytest.warns(ParticleDataWarning, match=r"no phase shift is larger than 1.57 degrees.*right unit"):
        read_particles(path)


@pytest.mark.parametrize(("cs_mm", "is_odd"), [(2.7e-3, True), (1.4e-3, True), (0.01, False), (0.001, False)])
def test_a_spherical_aberration_in_metres_is_questioned(written, cs_mm, is_odd):
    path = written("cs_angstrom", [cs_mm])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_particles(path)
    assert [f"is {cs_mm:g} mm, as if it were in metres" in str(w.message) for w in caught] == [True] * is_odd


def test_an_astigmatism_that_no_microscope_has_is_questioned(written):
    path = written("defocus_u_angstrom", [15_000] * 8 + [124_000])  # the other one is 79,000
    said = r"the astigmatism .* is 45000 A, expected 0 to 5,000 A as a rule \(1 of 9, first particle 9"
    with pytest.warns(ParticleDataWarning, match=said):
        read_particles(path)


def test_one_odd_row_of_many_is_named_and_counted(project):
    project.particles.loc[3, "rlnDefocusU"] = 90_000.0
    with pytest.warns(
        ParticleDataWarning, match=r"defocus U is 90000 A.*\(1 of 9, first particle 4 \(line \d+\)\)"
    ):
        read_particles(project.write())


def test_all_that_is_unusual_is_said_in_one_warning(project):
    project.particles.loc[3, "rlnDefocusU"] = 90_000.0
    project.particles["rlnPhaseShift"] = 1.5
    project.optics["rlnAmplitudeContrast"] = 0.9
    with pytest.warns(ParticleDataWarning, match=r"defocus U.*; the amplitude.*; no phase shift") as caught:
        read_particles(project.write())
    assert len(caught) == 1  # the command line tells one warning of a name


# ------------------------------------------------------------------------------------ poses and classes
@pytest.mark.parametrize("unknown", [-999.0, 999.0])
@pytest.mark.parametrize("label", ["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"])
def test_what_stands_for_unknown_is_no_pose(project, label, unknown):
    project.particles.loc[4, label] = unknown
    path = project.write()
    with pytest.raises(
        ParticleDataError, match=rf"{path}, particle 5 .*999 stand for unknown.*remove the col"
    ):
        read_particles(path)
    with pytest.raises(ParticleDataError, match=r"particle 5 .*Repair or drop the row"):
        read_particles(path, metadata_only=True)
    stack, report = read_particles(path, permissive=True)
    assert len(stack) == 8 and report["particle"].tolist() == [5]


@pytest.mark.parametrize(("field", "value"), [("pose", 90.0), ("pose", -999.0), ("shift", -999.0)])
def test_poses_of_a_table_of_cryosparc_have_the_same_range(project, field, value):
    path = cs_with(project, "scale", 1.0)
    records = np.load(path)
    records[f"alignments2D/{field}"][2] = value
    with open(path, "wb") as stream:
        np.save(stream, records)
    with pytest.raises(
        ParticleDataError, match=rf"{path}, particle 3: an in-plane angle of .*Repair or drop"
    ):
        read_particles(path)


def test_angles_of_a_whole_file_in_radians_are_questioned(tmp_path):
    stack = make_particles("ribosome", 30, box=48, path=tmp_path / "a.mrcs", random_state=0)
    write_particles(stack.with_metadata(rlnAnglePsi=np.linspace(-np.pi, np.pi, 30)), tmp_path / "x.star")
    text = (tmp_path / "x.star").read_text()
    table = starfile.read(tmp_path / "x.star")["particles"]
    assert "rlnAnglePsi" in text
    table["rlnOriginXAngst"] = table["rlnOriginYAngst"] = 0.0
    optics = starfile.read(tmp_path / "x.star")["optics"]
    for factor, is_odd in ((1.0, True), (57.3, False)):
        turned = table.assign(rlnAnglePsi=table["rlnAnglePsi"] * factor)
        starfile.write({"optics": optics, "particles": turned}, tmp_path / "y.star", overwrite=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read_particles(tmp_path / "y.star")
        assert [str(w.message)[-16:] for w in caught] == ["[unusual-values]"] * is_odd


@pytest.mark.parametrize("none", [0, -1, -999, np.nan])
def test_class_numbers_below_one_mean_no_class(project, none):
    project.particles["rlnClassNumber"] = [1, 2, none, 3, 1, 2, 3, 1, 2]
    assert class_labels(read_particles(project.write())).tolist() == [0, 1, -1, 2, 0, 1, 2, 0, 1]


def test_the_largest_unsigned_number_is_no_class_of_cryosparc(project):
    stack = read_particles(cs_with(project, "scale", 1.0))
    stack = stack.with_metadata(**{"alignments2D/class": np.arange(9, dtype=np.uint32) - np.uint32(1)})
    assert class_labels(stack).tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("odd", "said"), [(1.5, "is 1.5, expected a whole"), ("one", "is 'one', not a number")]
)
def test_class_numbers_are_whole(project, odd, said):
    project.particles["rlnClassNumber"] = pd.Series([1, 2, 3, 1, 2, odd, 1, 2, 3], dtype=object)
    with pytest.raises(ParticleDataError, match=rf"particle 6 .*rlnClassNumber {said}.*Repair that value"):
        read_particles(project.write())


# ------------------------------------------------------------------------------------ pixel size and box
def set_header(path, size):
    content = bytearray(path.read_bytes())
    content[40:52] = np.full(3, 8 * size, dtype="<f4").tobytes()  # cell lengths
    path.write_bytes(content)


@pytest.mark.parametrize("size", [12.55, 0.1255])
def test_a_magnification_wrong_by_ten_is_questioned(project, size):
    project.optics["rlnImagePixelSize"] = size
    project.particles[["rlnOriginXAngst", "rlnOriginYAngst"]] = 0.0
    for path in project.stacks:
        set_header(path, 0.0)
    path = project.write()
    with pytest.warns(
        ParticleDataWarning, match=rf"pixel size is {size} A, expected 0.3 to 10.*pass pixel_size"
    ):
        read_particles(path)
    read_particles(path, pixel_size=size, metadata_only=True)  # who says so knows


def test_large_pixels_are_questioned_by_the_width_of_the_box(tmp_path, project):
    for path in project.stacks:
        set_header(path, 12.55)
    project.optics["rlnImagePixelSize"] = 12.55
    read_particles(project.write())  # eight of them, as the images say too
    write_mrc(tmp_path / "wide.mrcs", np.random.default_rng(0).normal(size=(2, 256, 256)), 12.55)
    with pytest.warns(ParticleDataWarning, match="pixel size is 12.55 A, expected 0.3 to 10 A as a rule"):
        read_particles(tmp_path / "wide.mrcs")


def test_a_header_of_one_angstrom_says_nothing(project):
    del project.optics["rlnImagePixelSize"]
    for path in project.stacks:
        set_header(path, 1.0)
    path = project.write()
    with pytest.raises(
        ParticleDataError, match=r"nor the images give a pixel size \(1 A in a.*Pass pixel_size"
    ):
        read_particles(path)
    assert read_particles(path, pixel_size=1.0).pixel_size == 1.0
    with pytest.warns(ParticleDataWarning, match="leaving it unknown.* say 1 A, .*Pass pixel_size="):
        assert read_particles(project.stacks[0]).pixel_size is None


def test_pixels_that_are_not_square_are_questioned(project):
    content = bytearray(project.stacks[1].read_bytes())
    content[44:48] = np.array(8 * 2.5, dtype="<f4").tobytes()  # the cell along y
    project.stacks[1].write_bytes(content)
    said = r"b.mrcs: the header says 2 A a pixel along x and 2.5 A along y, expected one length. .*pass pixel"
    with pytest.warns(ParticleDataWarning, match=rf"1 stack.*{said}") as caught:
        stack = read_particles(project.write())
    assert stack.pixel_size == 2.0 and [w.message.name for w in caught] == ["pixels-not-square"]
    with pytest.warns(
        ParticleDataWarning, match=r"2 A a pixel along x and 2.5 A along y.*correct the header"
    ):
        assert read_mrc(project.stacks[1])[1] == 2.0


@pytest.mark.parametrize(("n_bytes", "said"), [(8 * 8 * 4, r"256 bytes .1 images"), (3, r"3 bytes .0.0117")])
def test_a_stack_longer_than_its_header_says_is_questioned(project, n_bytes, said):
    with open(project.stacks[1], "ab") as stream:
        stream.write(bytes(n_bytes))
    expected = 1024 + 4 * 8 * 8 * 4
    said = rf"b.mrcs has {expected + n_bytes:,} bytes, expected {expected:,} for its 4 images, so {said}"
    with pytest.warns(ParticleDataWarning, match=rf"{said}.*copy or extract the stack again") as caught:
        stack = read_particles(project.write())
    assert [warning.message.name for warning in caught] == ["stack-too-long"]
    np.testing.assert_array_equal(stack.read(), project.images)
    with pytest.warns(ParticleDataWarning, match=rf"is {n_bytes} bytes larger than expected.*again"):
        array, _ = read_mrc(project.stacks[1])
    np.testing.assert_array_equal(array, project.images[5:])


@pytest.mark.parametrize("box", [-999, 0, 3, 1e6])
def test_a_box_that_cannot_be_is_refused_without_images_too(project, box):
    project.optics["rlnImageSize"] = box
    with pytest.raises(ParticleDataError, match=r"the box is .* px, expected 4 to 65,536 px.*Correct it"):
        read_particles(project.write(), metadata_only=True)


# ------------------------------------------------------------------------------------ blocks, labels, groups
def test_files_joined_by_cat_are_refused_with_both_lines(project):
    text = project.write().read_text()
    project.star.write_text(text + text)
    with pytest.raises(
        ParticleDataError, match=r"block data_optics is there twice \(lines \d+ and \d+\).*concatenate\(\)"
    ):
        read_particles(project.star)
    particles = text[text.index("data_particles") :]
    project.star.write_text(text + particles)
    with pytest.raises(ParticleDataError, match=r"block data_particles is there twice"):
        read_particles(project.star)


@pytest.mark.parametrize("other", ["images", "Particles"])
def test_two_blocks_of_particles_are_refused(project, other):
    text = project.write().read_text()
    again = text[text.index("data_particles") :].replace("data_particles", f"data_{other}")
    project.star.write_text(text + again)
    with pytest.raises(
        ParticleDataError, match=rf"several blocks hold particles \(data_particles, data_{other}\).*Keep one"
    ):
        read_particles(project.star)


def test_old_files_joined_by_cat_are_refused(project):
    text = project.write(version="1.x").read_text()
    project.star.write_text(text + text)
    with pytest.raises(
        ParticleDataError, match=r"block data_ is there twice .* relion_star_handler --combine"
    ):
        read_particles(project.star)


@pytest.mark.parametrize("block", ["optics", "particles"])
def test_a_label_twice_is_named_with_its_block_and_lines(project, block):
    table = project.optics if block == "optics" else project.particles
    label = table.columns[2]
    text = project.write().read_text().replace(f"_{table.columns[3]} ", f"_{label} ")
    project.star.write_text(text)
    with pytest.raises(
        ParticleDataError,
        match=rf"^{project.star}, block data_{block}: label {label} .* \(lines \d+ and \d+\). Remove one",
    ):
        read_particles(project.star)


def test_a_key_twice_in_a_block_without_loop_is_refused(project):
    text = project.write().read_text()
    project.star.write_text("data_general\n\n_rlnA 1\n_rlnA 2\n\n" + text)
    with pytest.raises(ParticleDataError, match=r"data_general: label rlnA is there twice \(lines 3 and 4\)"):
        read_particles(project.star)


def test_several_optics_groups_need_the_column_that_tells_them_apart(project):
    second = project.optics.assign(rlnOpticsGroup=2, rlnVoltage=200.0)
    del project.particles["rlnOpticsGroup"]
    assert set(read_particles(project.write()).ctf.voltage_volts) == {300e3}
    project.optics["rlnOpticsGroup"] = 7
    assert set(read_particles(project.write()).optics_group) == {7}  # the only one there is
    project.optics = pd.concat([project.optics, second], ignore_index=True)
    with pytest.raises(
        ParticleDataError,
        match=r"no column rlnOpticsGroup, and data_optics has groups \[7, 2\].*Add the column",
    ):
        read_particles(project.write())


@pytest.mark.parametrize("number", [1.5, "one", np.nan])
@pytest.mark.parametrize("block", ["optics", "particles"])
def test_optics_groups_are_whole_numbers(project, block, number):
    table = project.optics if block == "optics" else project.particles
    table["rlnOpticsGroup"] = pd.Series([number] * len(table), dtype=object)
    remedy = "Give every optics group one row" if block == "optics" else "Repair that value"
    with pytest.raises(ParticleDataError, match=remedy):
        read_particles(project.write())


# ------------------------------------------------------------------------------------ names and columns
def test_images_named_twice_are_counted_and_the_first_is_named(project):
    project.particles = project.particles.drop(columns="rlnCoordinateX")  # for which .cs has no field
    first = project.particles["rlnImageName"][1]
    project.particles.loc[7, "rlnImageName"] = first.lstrip("0")  # written another way
    with pytest.warns(
        ParticleDataWarning,
        match=r"1 of 9 rows name an image that another row named before, the first is particle 8 .*Drop the",
    ) as caught:
        stack = read_particles(project.write())
    assert caught[0].message.name == "images-named-twice" and len(stack) == 9
    path = project.folder / "twice.cs"
    write_particles(stack, path)
    with pytest.warns(ParticleDataWarning, match="1 of 9 rows name an image"):
        read_particles(path)


@pytest.mark.parametrize("ctf", [True, False])
@pytest.mark.parametrize("says", ["flag", "columns"])
def test_tilt_series_of_tomograms_are_said_to_be_such(project, says, ctf):
    project.particles["rlnImageName"] = [f"Extract/Movies/{name}.mrcs" for name in "abababaab"]
    if says == "columns":
        project.particles["rlnTomoParticleName"] = [f"TS_1/{i}" for i in range(9)]
    text = project.write().read_text()
    if says == "flag":
        project.star.write_text("data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n" + text)
    with pytest.raises(
        ParticleDataError, match=r"tomograms: each row is the tilt series.*Use software for sub-t"
    ):
        read_particles(project.star, ctf=ctf)


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("rlnAmplitudeContrast", "Add it to data_optics or to the particles, or"),
        ("rlnVoltage", "Add it to data_optics or to the particles, or"),
        ("rlnDefocusV", "Estimate the CTF first, or"),
    ],
)
def test_what_is_missing_of_the_ctf_is_named_and_nothing_else_advised(project, missing, remedy):
    home = project.optics if missing in project.optics else project.particles
    del home[missing]
    with pytest.raises(
        ParticleDataError, match=rf"no column {missing}, nor in data_optics. {remedy} read with"
    ):
        read_particles(project.write())


@pytest.mark.parametrize("cell", ["-nan", "nan", "-nan(ind)", "none", "inf"])
def test_a_figure_of_merit_that_is_no_number_does_no_harm(project, cell):
    project.particles["rlnCtfFigureOfMerit"] = ["0.1", cell] + ["0.1"] * 7
    project.particles["rlnCtfMaxResolution"] = [cell] + ["5.0"] * 8
    assert len(read_particles(project.write())) == 9


@pytest.mark.parametrize("cell", ["-nan", "-nan(ind)", "1.#QNAN"])
def test_every_spelling_of_nan_is_a_missing_value(project, cell):
    project.particles["rlnDefocusU"] = ["15000.0"] * 4 + [cell] + ["15000.0"] * 4
    with pytest.raises(
        ParticleDataError, match=r"particle 5 .*defocus_u_angstrom is missing \(NaN\).*Estimate"
    ):
        read_particles(project.write())


UNUSED = {
    "rlnBeamTiltX": (0.3, 0.0), "rlnBeamTiltY": (-0.1, 0.0), "rlnMagMat00": (1.01, 1.0),
    "rlnMagMat01": (0.004, 0.0), "rlnMagMat11": (0.99, 1.0), "rlnOddZernike": ("[0,0.5,0]", "[0,0,0.0]"),
    "rlnEvenZernike": ("[-1e-2]", "[0.000000,0]"),
}  # fmt: skip


@pytest.mark.parametrize("label", UNUSED)
def test_aberrations_that_are_not_used_are_said_to_be_unless_they_are_none(project, label):
    something, nothing = UNUSED[label]
    project.optics[label] = nothing
    assert read_particles(project.write()).optics[label].iloc[0] == nothing
    project.optics[label] = something
    with pytest.warns(ParticleDataWarning, match=rf"{label} are kept, but not used") as caught:
        read_particles(project.write())
    assert caught[0].message.name == "optics-unused"


def test_anisotropic_magnification_of_cryosparc_is_said_to_be_unused(project):
    path = cs_with(project, "scale", 1.0)
    records = np.load(path)
    records["ctf/anisomag"][3, 2] = 0.01
    with open(path, "wb") as stream:
        np.save(stream, records)
    with pytest.warns(ParticleDataWarning, match=r"particles.cs: ctf/anisomag are kept, but not used"):
        read_particles(path)
