import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_particles
from sklearn_cryoem.io.star_file import TEXT_LABELS, name_of_line, read_star_file, star_parts


# ------------------------------------------------------------------------------------ versions
@pytest.mark.parametrize("version", ["3.1", "3.1 swapped", "3.0", "1.x"])
def test_every_version_gives_the_same_particles(project, version):
    stack = read_particles(project.write(version=version))
    np.testing.assert_array_equal(stack.read(), project.images)
    assert stack.pixel_size == pytest.approx(2.0)
    rows = np.arange(9)
    np.testing.assert_allclose(stack.ctf.defocus_u_angstrom, 15000.0 + rows)
    np.testing.assert_allclose(stack.ctf.defocus_v_angstrom, 14000.0 + rows)
    np.testing.assert_allclose(stack.ctf.astigmatism_angle_rad, np.deg2rad(20.0 + rows))
    np.testing.assert_allclose(stack.ctf.voltage_volts, 300e3)
    np.testing.assert_allclose(stack.ctf.cs_angstrom, 2.7e7)
    np.testing.assert_allclose(stack.ctf.amplitude_contrast, 0.1)
    np.testing.assert_allclose(stack.poses.angle_rad, np.deg2rad(30.0 * rows - 120.0))
    unit = 1.0 if version.startswith("3.1") else 2.0  # origins in pixels until RELION 3.0
    np.testing.assert_allclose(stack.poses.shift, unit * np.column_stack([rows, -rows]))
    assert stack.noise_group.tolist() == [0] * 5 + [1] * 4
    assert set(stack.optics_group) == {1}


def test_optional_columns_have_neutral_defaults(project):
    ctf = read_particles(project.write()).ctf
    assert set(ctf.phase_shift_rad) == {0.0}
    assert set(ctf.b_factor_angstrom2) == {0.0}
    assert set(ctf.scale) == {1.0}


def test_optional_columns_are_used_where_present(project):
    project.particles["rlnPhaseShift"] = 90.0
    project.particles["rlnCtfBfactor"] = 25.0
    project.particles["rlnCtfScalefactor"] = 0.5
    ctf = read_particles(project.write()).ctf
    np.testing.assert_allclose(ctf.phase_shift_rad, np.pi / 2)
    assert set(ctf.b_factor_angstrom2) == {25.0}
    assert set(ctf.scale) == {0.5}


def test_several_optics_groups_give_each_particle_its_own(project):
    second = project.optics.assign(rlnOpticsGroup=7, rlnVoltage=200.0, rlnSphericalAberration=1.4)
    project.optics = pd.concat([second, project.optics], ignore_index=True)
    project.particles["rlnOpticsGroup"] = [7, 1] * 4 + [7]
    stack = read_particles(project.write())
    assert stack.ctf.voltage_volts.tolist() == [200e3, 300e3] * 4 + [200e3]
    assert stack.ctf.cs_angstrom.tolist() == [1.4e7, 2.7e7] * 4 + [1.4e7]
    assert stack.optics_group.tolist() == [7, 1] * 4 + [7]
    chosen = read_particles(project.star, optics_groups=7)
    assert set(chosen.ctf.voltage_volts) == {200e3}
    np.testing.assert_array_equal(chosen.read(), project.images[::2])
    with pytest.raises(ParticleDataError, match=r"no particle is in optics group\(s\) \[3\].*from \[1, 7\]"):
        read_particles(project.star, optics_groups=[1, 3])


def test_of_two_tables_the_particle_counts_for_the_ctf_and_optics_for_the_rest_as_in_relion(project):
    n_images, size = len(project.particles), project.optics["rlnImagePixelSize"].iloc[0]
    project.particles["rlnVoltage"] = np.linspace(120.0, 300.0, n_images)
    project.particles["rlnImagePixelSize"] = 7.0
    stack = read_particles(project.write())
    np.testing.assert_allclose(stack.ctf.voltage_volts, 1e3 * np.linspace(120.0, 300.0, n_images))
    assert stack.pixel_size == size


def test_poses_need_angles_and_shifts(project):
    del project.particles["rlnOriginYAngst"]
    with pytest.raises(
        ParticleDataError, match=r"of rlnOriginXAngst and rlnOriginYAngst the other is not\. Add"
    ):
        read_particles(project.write())
    del project.particles["rlnOriginXAngst"]  # as after picking by templates
    stack = read_particles(project.write())
    assert stack.poses is None
    assert "rlnAnglePsi" in stack.metadata.columns


def test_shifts_without_angles_are_said_to_be_unused(project):
    del project.particles["rlnAnglePsi"]
    with pytest.warns(ParticleDataWarning, match=r"Add it if it was lost. \[shifts-without-angles\]"):
        stack = read_particles(project.write())
    assert stack.poses is None
    project.particles[["rlnOriginXAngst", "rlnOriginYAngst"]] = 0.0
    assert read_particles(project.write()).poses is None


@pytest.mark.parametrize(
    ("label", "typed"), [("rlnAnglePsi", "rlnAnglePsl"), ("rlnOriginXAngst", "rlnOriginXAngs")]
)
def test_misspelt_labels_are_not_taken_for_missing_ones(project, label, typed):
    project.particles = project.particles.rename(columns={label: typed})
    with pytest.raises(ParticleDataError, match=f"no {label}, but {typed}.*Correct the name"):
        read_particles(project.write())


def test_labels_that_only_look_alike_are_no_misspellings(project):
    table = project.particles
    columns = {
        "rlnOriginZAngst": 0.0,
        "rlnMicrographNameNoDW": "a",
        "rlnImageSizeX": 8,
        "rlnAnglePsiPrior": 1.0,
    }
    project.particles = table.drop(columns=["rlnMicrographName", "rlnAnglePsi", "rlnOriginXAngst"]).assign(
        **columns
    )
    del project.particles["rlnOriginYAngst"]
    del project.optics["rlnImageSize"]
    assert len(read_particles(project.write())) == 9


def test_a_last_row_that_was_cut_off_is_noticed(project):
    project.particles[project.particles.select_dtypes("number").columns] = 1.25
    project.particles["rlnOpticsGroup"] = 1
    project.particles["rlnDefocusU"] = project.particles["rlnDefocusV"] = 15000.0
    text = project.write().read_text().rstrip()
    project.star.write_text(text)
    read_particles(project.star)
    project.star.write_text(text[:-2])
    with pytest.warns(ParticleDataWarning, match=r"line break if it is whole. \[last-line-open\]"):
        read_particles(project.star)


def test_a_row_that_is_no_text_is_named(project):
    path = project.write()
    sound = path.read_bytes()
    for spoilt, said in (
        (b"mic\x00b", "holds a control character"),
        (b"mic\xe9b", "byte 0xe9; save it as UTF-8"),
    ):
        path.write_bytes(sound.replace(b"mic_b", spoilt, 1))
        with pytest.raises(ParticleDataError, match=f"row 6 .*{said}.*, in block data_particles"):
            read_particles(path)
    path.write_bytes(sound.replace(b"_rlnOriginXAngst", b"_rlnOriginXAn\x00st"))
    with pytest.raises(ParticleDataError, match=r"a label is called .*Copy or write it again"):
        read_particles(path)


def test_names_with_the_spaces_of_other_scripts_stay_whole(project):
    names = ["a\u00a0b.mrc", "with a space", *["c\u2028d.mrc"] * 7]  # a quoted one: row by row
    text = project.write().read_text()
    rows = [line for line in text.splitlines() if "@" in line]
    for row, name in zip(rows, names, strict=True):
        quoted = f'"{name}"' if " " in name else name
        text = text.replace(row, row.replace("mic_a.mrc", quoted).replace("mic_b.mrc", quoted))
    project.star.write_text(text)
    assert read_particles(project.star).metadata["rlnMicrographName"].tolist() == names


@pytest.mark.parametrize("spelt", ["./{}", "Extract/../{}", "{}:mrcs", "Extract//Movies/a.mrcs"])
def test_an_image_named_twice_is_noticed_however_it_is_spelt(project, spelt):
    project.particles.loc[1, "rlnImageName"] = "000001@" + spelt.format("Extract/Movies/a.mrcs")
    with pytest.warns(ParticleDataWarning, match=r"1 of 9 rows.*Drop the repeats"):
        read_particles(project.write())


def test_noise_groups_follow_micrographs_else_groups_else_files(project):
    del project.particles["rlnMicrographName"]
    project.particles["rlnGroupNumber"] = [3, 3, 8, 8, 8, 3, 3, 3, 9]
    assert read_particles(project.write()).noise_group.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 2]
    del project.particles["rlnGroupNumber"]
    assert read_particles(project.write()).noise_group.tolist() == [0] * 5 + [1] * 4


def test_names_are_text_even_if_they_look_like_numbers(project):
    project.particles["rlnMicrographName"] = [f"{i:04d}" for i in range(9)]
    assert read_particles(project.write()).metadata["rlnMicrographName"][3] == "0003"


def test_quoted_values_with_spaces(project, save_stack):
    save_stack(project.folder / "my stacks" / "a b.mrcs", project.images)
    project.particles["rlnImageName"] = [f"{i + 1}@my stacks/a b.mrcs" for i in range(9)]
    text = project.write().read_text()
    assert '"1@my stacks/a b.mrcs"' in text
    for quoted in (text, text.replace('"', "'")):
        project.star.write_text(quoted)
        np.testing.assert_array_equal(read_particles(project.star).read(), project.images)


def test_comments_and_blank_lines_between_rows(project):
    lines = project.write().read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if "@" in line)
    lines[last:last] = ["", "# a remark", "   "]
    project.star.write_text("\n".join(lines))
    assert len(read_particles(project.star)) == 9


def test_lines_that_end_as_on_windows(project):
    content = project.write().read_bytes().replace(b"\n", b"\r\n")
    project.star.write_bytes(content)
    np.testing.assert_array_equal(read_particles(project.star).read(), project.images)
    long_way = read_star_file(project.star)
    assert long_way["particles"]["rlnImageName"].tolist() == project.particles["rlnImageName"].tolist()


def test_a_single_particle_in_a_block_without_loop(project):
    row = project.particles.iloc[3]
    optics = "\n".join(f"_{name} {value}" for name, value in project.optics.iloc[0].items())
    single = "\n".join(f"_{name} {value}" for name, value in row.items())
    project.star.write_text(f"data_optics\n\n{optics}\n\ndata_particles\n\n{single}\n")
    stack = read_particles(project.star)
    np.testing.assert_array_equal(stack.read(), project.images[3:4])


def test_names_without_a_number_are_files_of_one_image(project, save_stack):
    for i in range(9):
        save_stack(project.folder / f"one_{i}.mrc", project.images[i : i + 1])
    project.particles["rlnImageName"] = [f"one_{i}.mrc" for i in range(9)]
    np.testing.assert_array_equal(read_particles(project.write()).read(), project.images)


# ------------------------------------------------------------------------------------ pixel size
def test_the_pixel_size_given_beats_that_of_the_file(project):
    assert read_particles(project.write(), pixel_size=3.0).pixel_size == 3.0
    stack = read_particles(project.write(version="1.x"), pixel_size=3.0)
    np.testing.assert_allclose(stack.poses.shift[:, 0], 3.0 * np.arange(9))


def test_the_pixel_size_is_taken_from_the_images_with_a_warning(project):
    del project.optics["rlnImagePixelSize"]
    project.write()
    with pytest.warns(ParticleDataWarning, match=r"taking 2 A from the headers.*Pass pixel_size="):
        assert read_particles(project.star).pixel_size == pytest.approx(2.0)


def test_without_any_pixel_size_neither_ctf_nor_shifts_in_angstrom_can_be_used(project, save_stack):
    del project.optics["rlnImagePixelSize"]
    for path in project.stacks:
        content = bytearray(path.read_bytes())
        content[40:52] = bytes(12)  # cell lengths
        path.write_bytes(content)
    project.write()
    with pytest.raises(ParticleDataError, match=r"the CTF needs. Pass pixel_size= in Angstrom"):
        read_particles(project.star)
    assert read_particles(project.star, pixel_size=1.2).pixel_size == 1.2
    with pytest.raises(ParticleDataError, match=r"shifts in Angstrom need. Pass pixel_size= in Angstrom"):
        read_particles(project.star, ctf=False)
    for axis in "XY":
        project.particles[f"rlnOrigin{axis}"] = project.particles.pop(f"rlnOrigin{axis}Angst")
    project.write()
    without = read_particles(project.star, ctf=False)
    assert without.pixel_size is None
    assert without.ctf is None
    np.testing.assert_array_equal(without.poses.shift[:, 0], project.particles["rlnOriginX"])


def test_several_pixel_sizes_are_refused_by_group(project):
    project.optics = pd.concat([project.optics, project.optics.assign(rlnOpticsGroup=2)], ignore_index=True)
    project.optics["rlnImagePixelSize"] = [1.25, 1.24]
    project.particles["rlnOpticsGroup"] = [1] * 5 + [2] * 4
    project.write()
    with pytest.raises(ParticleDataError, match=r"\{1: \[1.25\], 2: \[1.24\]\}.*optics_groups=.*pixel_size="):
        read_particles(project.star)
    with pytest.warns(ParticleDataWarning, match=r"1.24 A per pixel, the headers of the images 2 A"):
        assert read_particles(project.star, optics_groups=[2]).pixel_size == pytest.approx(1.24)
    assert read_particles(project.star, pixel_size=1.245).pixel_size == 1.245


# ------------------------------------------------------------------------------------ options
def test_images_are_transformed_when_read_only(project):
    stack = read_particles(project.write(), invert=True)
    np.testing.assert_array_equal(stack.read(), -project.images)
    normal = read_particles(project.star, normalise=8.0)
    np.testing.assert_array_equal(normal.read(), read_particles(project.star).normalise(8.0).read())
    both = read_particles(project.star, normalise=True, invert=True)
    np.testing.assert_array_equal(
        both.read(), read_particles(project.star).invert_contrast().normalise().read()
    )


def test_metadata_only_needs_no_images(project):
    for path in project.stacks:
        path.unlink()
    stack = read_particles(project.write(), metadata_only=True)
    assert (len(stack), stack.box, stack.pixel_size) == (9, 8, 2.0)
    assert stack[3:5].ctf.defocus_u_angstrom.tolist() == [15003.0, 15004.0]
    assert "metadata only" in repr(stack)
    with pytest.raises(ParticleDataError, match=r"Read the file again without it, with images_dir="):
        stack[2:4].read()


def test_reading_touches_no_pixel(project, monkeypatch):
    from sklearn_cryoem.particles.file_source import FileSource

    def touched(*args, **kwargs):
        raise AssertionError("read a pixel")

    monkeypatch.setattr(FileSource, "read", touched)
    assert len(read_particles(project.write())) == 9


def test_reading_looks_at_every_file_once_however_many_rows_it_has(project, monkeypatch):
    from sklearn_cryoem.io import assemble

    seen = []
    inspect = assemble.inspect_mrc
    monkeypatch.setattr(assemble, "inspect_mrc", lambda path: seen.append(path) or inspect(path))
    project.particles = pd.concat([project.particles] * 50, ignore_index=True)
    with pytest.warns(ParticleDataWarning, match="another row named before"):
        read_particles(project.write())
    assert len(seen) == 2


def test_poor_ctf_fits_raise_a_warning(project):
    project.particles["rlnCtfFigureOfMerit"] = 0.02
    project.particles["rlnCtfMaxResolution"] = 9.5
    project.write()
    with pytest.warns(
        ParticleDataWarning, match=r"figure of merit 0.020, fitted to 9.5 A.*estimate the CTF again"
    ):
        read_particles(project.star)


# ------------------------------------------------------------------------------------ where images are
@pytest.mark.parametrize("place", ["star's folder", "project's folder", "working directory", "absolute"])
def test_images_are_found_from_each_usual_place(project, tmp_path, monkeypatch, place):
    base = {
        "star's folder": project.star.parent,
        "project's folder": project.folder,
        "working directory": tmp_path / "elsewhere",
        "absolute": tmp_path / "far",
    }[place]
    base.mkdir(exist_ok=True)
    project.stacks[0].parent.rename(base / "Stacks")
    if place == "working directory":
        monkeypatch.chdir(base)
    prefix = f"{base}/" if place == "absolute" else ""
    project.particles["rlnImageName"] = project.particles["rlnImageName"].str.replace(
        "Extract/Movies/", f"{prefix}Stacks/"
    )
    np.testing.assert_array_equal(read_particles(project.write()).read(), project.images)


def test_images_are_found_through_a_link_to_the_star_file_and_beside_it(project, tmp_path):
    link = tmp_path / "links" / "here.star"
    link.parent.mkdir()
    link.symlink_to(project.write())
    np.testing.assert_array_equal(read_particles(link).read(), project.images)
    (project.folder / "Extract").rename(tmp_path / "links" / "Extract")
    (tmp_path / "links" / "Extract" / "particles.star").rename(project.folder / "moved.star")
    link.unlink()
    link.symlink_to(project.folder / "moved.star")
    np.testing.assert_array_equal(read_particles(link).read(), project.images)


@pytest.mark.parametrize("kept", ["Extract/Movies", "Movies", "."])
def test_images_dir_is_tried_with_ever_shorter_names(project, tmp_path, kept):
    target = tmp_path / "moved" / kept
    target.parent.mkdir(parents=True, exist_ok=True)
    project.stacks[0].parent.rename(target)
    stack = read_particles(project.write(), images_dir=tmp_path / "moved")
    np.testing.assert_array_equal(stack.read(), project.images)


def test_images_dir_relocates_absolute_names_too(project, tmp_path):
    project.particles["rlnImageName"] = project.particles["rlnImageName"].str.replace(
        "Extract", "/gone/from/here"
    )
    project.write()
    with pytest.raises(ParticleDataError, match=r"not found at /gone/from/here/Movies/a.mrcs"):
        read_particles(project.star)
    stack = read_particles(project.star, images_dir=project.folder / "Extract")
    np.testing.assert_array_equal(stack.read(), project.images)


# ------------------------------------------------------------------------------------ the parser
def test_files_are_read_as_starfile_reads_them(shared_data):
    paths = sorted((shared_data / "metadata" / "relion").rglob("*.star"))
    for path in [path for path in paths if path.stat().st_size < 2**16]:  # starfile is slow
        expected = starfile.read(path, always_dict=True, parse_as_string=TEXT_LABELS)
        found = read_star_file(path)
        assert list(found) == list(expected), path
        for name, block in expected.items():
            if isinstance(block, dict):
                assert found[name].iloc[0].to_dict() == block
            else:
                pd.testing.assert_frame_equal(found[name], block, check_dtype=len(block) > 0)


HEAD = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnX #2\n"


@pytest.mark.parametrize(
    ("text", "names", "numbers"),
    [
        (
            "data_particles\nloop_\n# one\n_rlnImageName #1\n  # two\n_rlnX #2\n1@a.mrcs 1\n",
            ["1@a.mrcs"],
            [1],
        ),
        (HEAD + "1@a#b.mrcs 1\n2@#.mrcs 2.5\n", ["1@a#b.mrcs", "2@#.mrcs"], [1, 2.5]),
        (HEAD + "1@Pete's/a.mrcs 1\n2@b.mrcs 2\n", ["1@Pete's/a.mrcs", "2@b.mrcs"], [1, 2]),
        (HEAD + '"1@my/ a.mrcs" 1\n\'2@a "b".mrcs\' 2 # c\n', ["1@my/ a.mrcs", '2@a "b".mrcs'], [1, 2]),
        (HEAD + "\"1@it's.mrcs\" 1\n# c\n\n'2@#1.mrcs' nan\n", ["1@it's.mrcs", "2@#1.mrcs"], [1, np.nan]),
        (HEAD + "'' 1\n\"\" <NA>\n", ["", ""], [1, np.nan]),
    ],
)
def test_quotes_and_comments_are_syntax_only_where_they_can_be(tmp_path, text, names, numbers):
    (tmp_path / "x.star").write_text(text)
    table = read_star_file(tmp_path / "x.star")["particles"]
    assert table["rlnImageName"].tolist() == names
    np.testing.assert_array_equal(table["rlnX"], numbers)


def test_names_with_quotes_and_hashes_come_back(project, save_stack):
    odd = project.folder / "Pete's #1" / "a b.mrcs"
    save_stack(odd, project.images)
    project.particles["rlnImageName"] = [f"{i + 1}@Pete's #1/a b.mrcs" for i in range(9)]
    project.particles["rlnMicrographName"] = [
        "a'b.mrc",
        "#.mrc",
        '"q.mrc',
        "'q'",
        "_x",
        "data_y",
        ";",
        "$z",
        "",
    ]
    project.star.parent.mkdir(exist_ok=True)
    with open(project.star, "w") as file:
        file.writelines(star_parts({"optics": project.optics, "particles": project.particles}))
    stack = read_particles(project.star)
    np.testing.assert_array_equal(stack.read(), project.images)
    assert stack.metadata["rlnMicrographName"].tolist() == project.particles["rlnMicrographName"].tolist()


def test_text_that_star_cannot_hold_is_refused():
    for text in ("two\nlines", "both \" and ' of them"):
        with pytest.raises(ParticleDataError, match=r"column a cannot be written.*drop the column"):
            "".join(star_parts({"": pd.DataFrame({"a": ["x", text]})}))


@pytest.mark.parametrize(("row", "reason"), [('"open 1', "open quote"), ("'a' 1 2", "3 values for 2 labels")])
def test_broken_rows_are_named(tmp_path, row, reason):
    (tmp_path / "x.star").write_text(HEAD + row + "\n")
    with pytest.raises(ParticleDataError, match=rf"x.star: cannot be parsed as STAR \(row 1 has.*{reason}"):
        read_particles(tmp_path / "x.star")


def test_the_line_of_a_row_skips_comments_and_other_blocks(tmp_path):
    path = tmp_path / "a.star"
    path.write_text("data_x\nloop_\n_a\n1\n\ndata_y\nloop_\n_a\n# no\n1\n\n2\n")
    lines = [name_of_line(path, block, row) for block, row in (("y", 0), ("y", 1), ("y", 2), ("x", 0))]
    assert lines == [" (line 10)", " (line 12)", "", " (line 4)"]


@pytest.mark.parametrize("name", ["plain", "'quoted name'"])
def test_numbers_are_read_to_their_last_digit(name, tmp_path):
    numbers = np.random.default_rng(0).normal(size=200).tolist()
    rows = "".join(f"{name} {number!r}\n" for number in numbers)
    (tmp_path / "x.star").write_text(f"data_\n\nloop_\n_rlnImageName #1\n_rlnScore #2\n{rows}")
    table = read_star_file(tmp_path / "x.star")[""]
    assert table["rlnScore"].tolist() == numbers


@pytest.mark.parametrize("end", ["\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028"])
def test_a_text_with_a_line_end_of_any_kind_is_not_written(end):
    table = pd.DataFrame({"rlnImageName": [f"000001@a{end}b.mrcs"]})
    with pytest.raises(ParticleDataError, match="rename the file or folder that it names"):
        list(star_parts({"particles": table}))
