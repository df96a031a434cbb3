"""Two optics groups with other pixels and boxes in one file: refused with the way out, or brought to one."""

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem import read_particles, write_particles
from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_mrc

FEW = "--align-classes 2 --align-batches 2 --align-iterations 1 --classes 2x2 --iterations 2 --jobs 1".split()


def write_star(path, tables):
    lines = []
    for name, table in tables.items():
        lines += [f"data_{name}", "", "loop_", *[f"_{column}" for column in table.columns]]
        lines += [" ".join(map(str, row)) for row in table.itertuples(index=False)] + [""]
    path.write_text("\n".join(lines))


@pytest.fixture
def mixed(tmp_path):
    """Groups of 40 px of 9 A and 36 px of 11 A, row by row in turn; returns the file and both stacks."""
    stacks = [
        make_particles("ribosome", 30, box=box, pixel_size=size, snr=5.0, random_state=seed)
        for seed, (box, size) in enumerate([(40, 9.0), (36, 11.0)])
    ]
    rows = []
    for group, stack in enumerate(stacks, start=1):
        write_mrc(tmp_path / f"{group}.mrcs", stack.read(), stack.pixel_size)
        ctf = stack.ctf
        for row in range(30):
            rows.append({
                "rlnImageName": f"{row + 1:06d}@{group}.mrcs", "rlnMicrographName": f"m{group}.mrc",
                "rlnOpticsGroup": group, "rlnDefocusU": ctf.defocus_u_angstrom[row],
                "rlnDefocusV": ctf.defocus_v_angstrom[row],
                "rlnDefocusAngle": np.rad2deg(ctf.astigmatism_angle_rad[row]), "rlnAnglePsi": 3.0 * row,
                "rlnOriginXAngst": 0.25 * row, "rlnOriginYAngst": -0.5 * row,
            })  # fmt: skip
    particles = pd.DataFrame(rows).iloc[np.arange(60).reshape(2, 30).T.ravel()]
    optics = pd.DataFrame({
        "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["a", "b"], "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1, "rlnImagePixelSize": [9.0, 11.0],
        "rlnImageSize": [40, 36], "rlnImageDimensionality": 2,
    })  # fmt: skip
    path = tmp_path / "mixed.star"
    write_star(path, {"optics": optics, "particles": particles})
    return path, stacks


def test_a_mixed_set_is_refused_with_the_way_out(mixed):
    path, _ = mixed
    with pytest.raises(ParticleDataError, match=r"mixed.star.*wrong box.*rescale=True"):
        read_particles(path)
    with pytest.raises(ParticleDataError, match=r"1: \[9.0\], 2: \[11.0\].*rescale=True"):
        read_particles(path, metadata_only=True)


def test_a_mixed_set_is_brought_to_one_frame(mixed):
    path, stacks = mixed
    stack = read_particles(path, rescale=True)
    assert stack.shape == (60, 32, 32) and stack.pixel_size == 11.0
    assert stack.optics_group.tolist() == [1, 2] * 30 and len(stack.optics) == 2
    assert stack.metadata["rlnImageName"].iloc[:3].tolist() == [
        "000001@1.mrcs", "000001@2.mrcs", "000002@1.mrcs",
    ]  # fmt: skip
    np.testing.assert_allclose(stack.poses.shift[::2], stack.poses.shift[1::2])
    images = stack.read()
    np.testing.assert_array_equal(images[1::2], stacks[1].read()[:, 2:34, 2:34])  # a crop
    signal = stacks[0].read().std() * 11.0 / 9.0  # noise alone would keep its level
    assert images[::2].std() == pytest.approx(signal, rel=0.03)
    for group in (1, 2):
        alone = read_particles(path, optics_groups=group)
        assert alone.pixel_size == stacks[group - 1].pixel_size and alone.box == stacks[group - 1].box
    same = read_particles(path, optics_groups=1, rescale=True)
    np.testing.assert_array_equal(same.read(), stacks[0].read())


def test_a_mixed_set_is_written_back_as_it_came(mixed, tmp_path):
    path, _ = mixed
    stack = read_particles(path, rescale=True)
    write_particles(stack[10:50], path.with_name("part.star"), labels=np.arange(40) % 4)
    again = read_particles(path.with_name("part.star"), rescale=True)
    np.testing.assert_array_equal(again.read(), stack.read(slice(10, 50)))
    np.testing.assert_allclose(again.poses.shift, stack.poses.shift[10:50])
    assert again.optics["rlnImagePixelSize"].tolist() == [9.0, 11.0]
    with pytest.raises(ParticleDataError, match=r"several pixel sizes where they lie.*Write the format"):
        write_particles(stack, tmp_path / "old.star", star_version="3.0")


@pytest.mark.parametrize("metadata_only", [False, True])
def test_a_mixed_set_goes_to_cryosparc_and_back(mixed, metadata_only):
    """Both formats say box and pixel size of each particle, and shifts count in its own pixels."""
    path, stacks = mixed
    stack = read_particles(path, rescale=True, metadata_only=metadata_only)
    write_particles(stack, path.with_suffix(".cs"))
    fields = np.load(path.with_suffix(".cs"))
    assert fields["blob/psize_A"][:2].tolist() == [9.0, 11.0]
    assert fields["blob/shape"][:2].tolist() == [[box, box] for box in (stacks[0].box, stacks[1].box)]
    back = read_particles(path.with_suffix(".cs"), rescale=True, images_dir=path.parent)
    np.testing.assert_allclose(back.poses.shift, stack.poses.shift, atol=1e-4)
    np.testing.assert_array_equal(back.read(), read_particles(path, rescale=True).read())
    write_particles(back, path.with_name("back.star"))
    optics = read_particles(path.with_name("back.star"), rescale=True).optics
    assert optics["rlnImagePixelSize"].tolist() == [9.0, 11.0]
    assert optics["rlnImageSize"].tolist() == [stacks[0].box, stacks[1].box]


def test_bad_rows_of_a_mixed_set_are_reported_by_their_place(mixed):
    path, _ = mixed
    path.write_text(path.read_text().replace("000003@2.mrcs", "000333@2.mrcs"))
    with pytest.raises(ParticleDataError, match=r"particle 6 \(line \d+\): 000333@2.mrcs does not exist"):
        read_particles(path, rescale=True)
    stack, report = read_particles(path, rescale=True, permissive=True)
    assert len(stack) == 59 and report["particle"].tolist() == [6]


def test_a_group_without_a_usable_particle_is_left_out(mixed):
    path, _ = mixed
    text = path.read_text()
    path.write_text(text.replace(" 9.0 40 2", " 9.0 44 2"))  # another box than its images have
    stack, report = read_particles(path, rescale=True, permissive=True)
    assert (len(stack), stack.pixel_size, stack.box, len(report)) == (30, 11.0, 36, 30)
    assert report["problem"].str.contains("wrong box").all()


def test_shifts_are_judged_by_the_box_of_their_own_group(mixed):
    path, _ = mixed
    lines = path.read_text().splitlines()
    for group, fits in ((2, True), (1, False)):  # 380 A are 34.5 of 36 px, or 42.2 of 40 px
        at = next(place for place, line in enumerate(lines) if f"000003@{group}.mrcs" in line)
        cells = lines[at].split()
        cells[-2] = "380.0"
        path.write_text("\n".join([*lines[:at], " ".join(cells), *lines[at + 1 :]]))
        if fits:
            assert len(read_particles(path, rescale=True)) == 60
        else:
            with pytest.raises(ParticleDataError, match=r"a shift of 42\.2222 px.*the box of 40 px"):
                read_particles(path, rescale=True)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_commands_take_a_mixed_set(mixed, tmp_path, capsys):
    path, _ = mixed
    assert main(["info", str(path)]) == 0
    capsys.readouterr()
    assert main(["classify", str(path), "-o", str(tmp_path / "out"), "--quiet", *FEW]) == 1
    assert "--rescale" in capsys.readouterr().err
    assert main(["classify", str(path), "-o", str(tmp_path / "out"), "--rescale", "--quiet", *FEW]) == 0
    labelled = read_particles(tmp_path / "out" / "particles.star", rescale=True)
    assert labelled.pixel_size == 11.0 and labelled.metadata["rlnClassNumber"].between(1, 4).all()
    number = str(labelled.metadata["rlnClassNumber"].iloc[0])
    assert main(["select", str(tmp_path / "out"), "--classes", number, "--quiet"]) == 0
    chosen = read_particles(tmp_path / "out" / "selected.star", rescale=True)
    assert 0 < len(chosen) <= 60 and set(chosen.metadata["rlnClassNumber"]) == {int(number)}


@pytest.mark.filterwarnings("ignore:.*rlnMagMat11 are kept, but not used")  # true of these particles
def test_a_real_mixed_set_reads_as_metadata(shared_data):
    path = shared_data / "metadata" / "relion" / "relion31.6opticsgroups.star"
    stack = read_particles(path, metadata_only=True, rescale=True)
    assert len(stack) == 139 and stack.pixel_size == 1.25 and len(stack.optics) == 6
    np.testing.assert_array_equal(stack.optics_group, stack.metadata["rlnOpticsGroup"])


def test_pixel_sizes_that_are_not_known_cannot_be_rescaled(mixed):
    path, _ = mixed
    lines = [line for line in path.read_text().splitlines() if "rlnImagePixelSize" not in line]
    text = "\n".join(lines).replace(" 9.0 40 2", " 40 2").replace(" 11.0 36 2", " 36 2")
    path.write_text(text)
    with pytest.warns(ParticleDataWarning, match="taking"):
        stack = read_particles(path, rescale=True)  # the headers have them
    assert stack.pixel_size == 11.0 and stack.box == 32
