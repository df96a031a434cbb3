"""Every kind of bad input: an error that names file, row and remedy, or a row in the permissive report."""

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_particles


def truncate(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def spoil_pixels(project, save_stack, row, value):
    images = project.images.copy()
    images[row] = value
    save_stack(project.stacks[0], images[:5])
    save_stack(project.stacks[1], images[5:])


def set_value(project, label, row, value):
    column = project.particles[label].astype(object)
    column[row] = value
    project.particles[label] = column


# One line each: how to spoil a sound project, the rows (from 0) it concerns, and what the error must say.
BAD_ROWS = {
    "missing stack": (
        lambda p, save: p.stacks[1].unlink(),
        [5, 6, 7, 8],
        r"particle 6 \(line \d+\): image stack Extract/Movies/b.mrcs not found in .*project.*images_dir=",
    ),
    "index beyond the stack": (
        lambda p, save: set_value(p, "rlnImageName", 6, "000005@Extract/Movies/b.mrcs"),
        [6],
        r"particle 7 .*000005@Extract/Movies/b.mrcs does not exist, its file holds 4 images.*images_dir=",
    ),
    "index zero": (
        lambda p, save: set_value(p, "rlnImageName", 2, "000000@Extract/Movies/a.mrcs"),
        [2],
        r"particle 3 .*expected number@file, from 1. Correct the name",
    ),
    "index not a number": (
        lambda p, save: set_value(p, "rlnImageName", 2, "x@Extract/Movies/a.mrcs"),
        [2],
        r"particle 3 .*'x@Extract/Movies/a.mrcs', expected number@file",
    ),
    "truncated stack": (
        lambda p, save: truncate(p.stacks[0], 1024 + 3 * 256 + 5),
        [3, 4],
        r"particle 4 .*a.mrcs is truncated: its header promises 5 images, it holds 3 whole.*Copy or extract",
    ),
    "wrong box in one stack": (
        lambda p, save: save(p.stacks[1], np.ones((4, 10, 10), np.float32)),
        [5, 6, 7, 8],
        r"particle 6 .*wrong box: 000001@Extract/Movies/b.mrcs has 10 px, the metadata say 8",
    ),
    "empty stack": (lambda p, save: p.stacks[1].write_bytes(b""), [5, 6, 7, 8], r"b.mrcs: the file is empty"),
    "not MRC": (
        lambda p, save: p.stacks[1].write_bytes(b"text " * 500),
        [5, 6, 7, 8],
        r"particle 6 .*b.mrcs: not an MRC file",
    ),
    "negative defocus": (
        lambda p, save: set_value(p, "rlnDefocusU", 4, -12000.0),
        [4],
        r"particle 5 .*defocus U is -12000 A, expected 0 to 200,000 A.*ctf=False",
    ),
    "absurd defocus": (
        lambda p, save: set_value(p, "rlnDefocusV", 0, 9e6),
        [0],
        r"particle 1 .*defocus V is 9e\+06 A, expected 0 to 200,000 A.*Estimate the CTF again",
    ),
    "defocus NaN": (
        lambda p, save: set_value(p, "rlnDefocusU", 8, np.nan),
        [8],
        r"particle 9 .*defocus_u_angstrom is missing \(NaN\)",
    ),
    "defocus not a number": (
        lambda p, save: set_value(p, "rlnDefocusU", 1, "oops"),
        [1],
        r"particle 2 .*rlnDefocusU is 'oops', not a number. Repair that value",
    ),
    "pose NaN": (
        lambda p, save: set_value(p, "rlnOriginXAngst", 3, np.nan),
        [3],
        r"particle 4 .*an in-plane angle or a shift is missing \(NaN\). Repair or drop",
    ),
    "mirror that is neither": (
        lambda p, save: p.particles.insert(0, "rlnIsFlip", [0, 1, 0, 0, 1, 0, 0, 2, 1]),
        [7],
        r"particle 8 .*rlnIsFlip is neither 0 nor 1. Repair that value",
    ),
    "unknown optics group": (
        lambda p, save: set_value(p, "rlnOpticsGroup", 2, 9),
        [2],
        r"particle 3 .*optics group 9 is not in block data_optics, which has \[1\]. Add its row",
    ),
}
BAD_PIXELS = {
    "NaN particle": (np.nan, "holds NaN or infinity"),
    "infinite particle": (-np.inf, "holds NaN or infinity"),
    "constant particle": (0.5, r"is constant \(every pixel is 0.5\)"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_particle_is_refused_by_row_or_left_out_and_reported(project, save_stack, case):
    spoil, rows, message = BAD_ROWS[case]
    spoil(project, save_stack)
    path = project.write()
    with pytest.raises(ParticleDataError, match=f"{path}, .*{message}"):
        read_particles(path)
    stack, report = read_particles(path, permissive=True)
    kept = np.setdiff1d(np.arange(9), rows)
    np.testing.assert_array_equal(stack.read(), project.images[kept])
    assert stack.ctf.astigmatism_angle_rad.tolist() == np.deg2rad(20.0 + kept).tolist()
    assert stack.metadata["rlnCoordinateX"].tolist() == (10.0 * kept).tolist()
    assert report["particle"].tolist() == [row + 1 for row in rows]
    assert report["image"].str.contains("@").all()
    assert (report["problem"].str.len() > 10).all()


@pytest.mark.parametrize("case", BAD_PIXELS)
def test_bad_pixels_are_found_when_they_are_read_or_at_once_if_asked(project, save_stack, case):
    value, problem = BAD_PIXELS[case]
    spoil_pixels(project, save_stack, 6, value)
    path = project.write()
    stack = read_particles(path)
    np.testing.assert_array_equal(stack.read(slice(0, 6)), project.images[:6])
    with pytest.raises(ParticleDataError, match=rf"row 6 .*b.mrcs, image 2\) {problem}.*permissive=True"):
        stack.read()
    assert stack.check()["row"].tolist() == [6]
    stack, report = read_particles(path, permissive=True)
    assert report["particle"].tolist() == [7]
    np.testing.assert_array_equal(stack.read(), np.delete(project.images, 6, axis=0))


def test_all_kinds_of_bad_particles_at_once(project, save_stack):
    set_value(project, "rlnDefocusU", 0, -1.0)
    set_value(project, "rlnImageName", 1, "000009@Extract/Movies/a.mrcs")
    set_value(project, "rlnImageName", 2, "000001@gone.mrcs")
    spoil_pixels(project, save_stack, 4, np.nan)
    stack, report = read_particles(project.write(), permissive=True)
    assert report["particle"].tolist() == [1, 2, 3, 5]
    assert report["image"].tolist()[2] == "000001@gone.mrcs"
    np.testing.assert_array_equal(stack.read(), project.images[[3, 5, 6, 7, 8]])


def test_a_sound_file_gives_an_empty_report(project):
    stack, report = read_particles(project.write(), permissive=True)
    assert len(stack) == 9
    assert report.empty
    assert list(report.columns) == ["particle", "image", "problem"]


def test_groups_left_out_on_purpose_are_not_reported(project):
    project.optics = pd.concat([project.optics, project.optics.assign(rlnOpticsGroup=2)], ignore_index=True)
    project.particles["rlnOpticsGroup"] = [1] * 5 + [2] * 4
    project.particles.loc[0, "rlnDefocusU"] = -5.0
    stack, report = read_particles(project.write(), permissive=True, optics_groups=[2])
    assert report.empty
    np.testing.assert_array_equal(stack.read(), project.images[5:])
    stack, report = read_particles(project.star, permissive=True, optics_groups=[1])
    assert report["particle"].tolist() == [1]
    assert len(stack) == 4


def test_nothing_left_is_an_error_even_if_permissive(project):
    project.particles["rlnDefocusU"] = -1.0
    with pytest.raises(
        ParticleDataError, match=r"none of its 9 particles can be used; the first: defocus U is -1"
    ):
        read_particles(project.write(), permissive=True)
    for path in project.stacks:
        path.unlink()
    project.particles["rlnDefocusU"] = 1e4
    with pytest.raises(ParticleDataError, match=r"none of its 9 particles.*a.mrcs not found.*2 of 2 stacks"):
        read_particles(project.write(), permissive=True)


def test_boxes_of_several_sizes_are_refused_by_optics_group(project, save_stack):
    images = np.random.default_rng(1).normal(size=(4, 10, 10)).astype(np.float32)
    save_stack(project.stacks[1], images)
    project.optics = pd.concat([project.optics, project.optics.assign(rlnOpticsGroup=2)], ignore_index=True)
    project.optics["rlnImageSize"] = [8, 10]
    project.particles["rlnOpticsGroup"] = [1] * 5 + [2] * 4
    path = project.write()
    with pytest.raises(
        ParticleDataError, match=r"particle 6 .*wrong box.*\{1: \[8\], 2: \[10\]\}.*optics_groups="
    ):
        read_particles(path)
    np.testing.assert_array_equal(read_particles(path, optics_groups=2).read(), images)
    stack, report = read_particles(path, permissive=True)
    assert (stack.box, len(stack), len(report)) == (8, 5, 4)


def test_a_stack_truncated_behind_the_particles_used_only_warns(project):
    truncate(project.stacks[0], 1024 + 3 * 256 + 5)
    project.particles = project.particles.iloc[:3]
    project.write()
    with pytest.warns(ParticleDataWarning, match=r"1 stack\(s\) are truncated.*a.mrcs. Copy or extract"):
        stack = read_particles(project.star)
    np.testing.assert_array_equal(stack.read(), project.images[:3])


# ------------------------------------------------------------------------------------ whole files
@pytest.mark.parametrize(
    "column", ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnAmplitudeContrast"]
)
@pytest.mark.parametrize("permissive", [False, True])
def test_a_missing_ctf_column_is_named(project, column, permissive):
    home = project.particles if column in project.particles else project.optics
    del home[column]
    with pytest.raises(ParticleDataError, match=rf"block data_particles: no column {column}.*ctf=False"):
        read_particles(project.write(), permissive=permissive)
    assert read_particles(project.star, ctf=False).ctf is None


def test_an_empty_file_and_an_empty_table(project):
    path = project.write()
    text = path.read_text()
    path.write_text("")
    with pytest.raises(
        ParticleDataError, match=r"particles.star: the file is empty. Copy or export it again"
    ):
        read_particles(path)
    path.write_text("\n".join(line for line in text.splitlines() if "@" not in line) + "\n")
    with pytest.raises(ParticleDataError, match=r"block data_particles holds no particle. Check the job"):
        read_particles(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "no data_ block in it"),
        ("data_particles\n\n", "no particles in it: no block has the column"),
        ("data_particles\nloop_\n_rlnImageName\n_rlnDefocusU\n1@a.mrcs\n", "cannot be parsed as STAR"),
        ("data_particles\nloop_\n_rlnImageName\n1@a.mrcs\n1@a.mrcs 5\n", "cannot be parsed as STAR"),
        ("data_x\n_a 'open\n", "cannot be parsed as STAR .*open quote"),
        ("data_x\n_a 1 2\n", "cannot be parsed as STAR"),
        ("data_\nloop_\n_a\n1\n", "no block has the column rlnImageName"),
        (
            "data_a\nloop_\n_rlnImageName\n1@a\ndata_b\nloop_\n_rlnImageName\n1@a\n",
            "several blocks hold particles",
        ),
        (
            "data_particles\nloop_\n_rlnImageName\n_rlnImageDimensionality\na.mrc 3\n",
            "these are sub-tomograms",
        ),
        ("data_movies\nloop_\n_rlnMicrographMovieName\na.tif\n", "a list of movies.*Extract particles"),
        ("data_micrographs\nloop_\n_rlnMicrographName\na.mrc\n", "a list of micrographs.*Extract particles"),
        ("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n", "a list of coordinates.*Extract particles"),
        ("data_optimiser_general\n_rlnExperimentalDataStarFile  r_data.star\n", r"names \(r_data.star\)"),
    ],
)
def test_files_that_hold_no_particles_say_what_they_are(tmp_path, text, message):
    path = tmp_path / "x.star"
    path.write_text(text)
    with pytest.raises(ParticleDataError, match=rf"x\.star: .*{message}"):
        read_particles(path)


def test_a_binary_file_is_no_star_file(tmp_path):
    path = tmp_path / "x.star"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(ParticleDataError, match="not a STAR file"):
        read_particles(path)


def test_a_row_that_was_cut_off_is_found(project):
    lines = project.write().read_text().rstrip().splitlines()
    lines[-1] = lines[-1][:25]
    project.star.write_text("\n".join(lines) + "\n")
    with pytest.raises(ParticleDataError, match=r"particle 9 \(line \d+\)"):
        read_particles(project.star)


@pytest.mark.parametrize("numbers", [[1, 1], []])
def test_optics_groups_must_be_there_once_each(project, numbers):
    project.optics = pd.concat([project.optics] * len(numbers) or [project.optics[:0]], ignore_index=True)
    with pytest.raises(ParticleDataError, match="Give every optics group one row"):
        read_particles(project.write())


def test_the_file_must_exist_and_be_of_a_known_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file. Check the name; the working directory is"):
        read_particles(tmp_path / "no.star")
    for name in ("x.txt", "x"):
        (tmp_path / name).write_text("data_")
        with pytest.raises(
            ParticleDataError, match=r"read from .star, .cs, .csg, .mrcs and .mrc files.*Rename"
        ):
            read_particles(tmp_path / name)


@pytest.mark.parametrize("size", [0, -1.0, np.nan, 1.2e-10, 1200.0])
def test_a_pixel_size_that_cannot_be_is_refused(project, size):
    with pytest.raises(ValueError, match="'pixel_size' of read_particles must be a finite number"):
        read_particles(project.write(), pixel_size=size)
