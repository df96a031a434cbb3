"""From a folder of results to a subset, and from one program's files to another's."""

import json

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem import read_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.io import read_mrc, write_selection
from sklearn_cryoem.particles import class_labels

FEW = (
    "--align-classes 4 --align-batches 10 --align-iterations 2 --classes 2x3 --iterations 6 --jobs 1".split()
)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished run with junk in it, its particles beside it."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--particles", 200, "--box", 32, "--snr", 0.5, "--junk", 0.2, "--max-shift", 15, "--jobs", 1]
    assert run("simulate", "-o", folder, "--quiet", *words) == 0
    (folder / "summary.json").rename(folder / "simulation.json")
    (folder / "particles.star").rename(folder / "simulated.star")
    assert run("classify", folder / "simulated.star", "-o", folder / "out", "--quiet", *FEW) == 0
    return folder / "out"


def labelled(path, results):
    return read_particles(path, images_dir=results.parent)


# ---------------------------------------------------------------- what classify leaves for it
def test_classify_writes_what_quality_needs(results):
    quality = pd.read_csv(results / "quality.csv")
    stack = labelled(results / "particles.star", results)
    labels = class_labels(stack)
    assert quality["class"].tolist() == list(range(1, 7))
    assert quality["size"].tolist() == np.bincount(labels, minlength=6).tolist()
    assert {"soft_size", "resolution", "snr", "latent_spread", "posterior", "rank"} <= set(quality)
    assert quality["posterior"][quality["size"] > 0].between(0.2, 1).all()
    assert quality.loc[~quality["keep"], "reasons"].notna().all()
    suggested = json.loads((results / "suggested.json").read_text())
    assert suggested["classes"] == quality.loc[quality["keep"], "class"].tolist()
    summary = json.loads((results / "summary.json").read_text())
    assert suggested["source"] == {"folder": "out", "n_classes": 6, "written_at": summary["written_at"]}
    assert summary["results"]["n_particles_suggested"] == quality["size"][quality["keep"]].sum()
    assert {"smlLatent1", "smlLatent2", "rlnMaxValueProbDistribution"} <= set(stack.metadata.columns)
    assert stack.metadata["rlnMaxValueProbDistribution"].between(0.1, 1).all()
    classes = starfile.read(results / "class_averages_model.star")
    assert classes["rlnReferenceImage"].tolist() == [f"00000{i}@class_averages.mrcs" for i in range(1, 7)]
    np.testing.assert_allclose(classes["rlnClassDistribution"], quality["size"] / 200, atol=1e-6)


# ---------------------------------------------------------------- select
def test_select_by_numbers_selection_and_suggestion_agree(results, tmp_path, capsys):
    suggested = json.loads((results / "suggested.json").read_text())["classes"]
    write_selection(tmp_path / "s.json", suggested)
    outputs = [tmp_path / f"{name}.star" for name in ("numbers", "selection", "suggested")]
    listed = ",".join(map(str, suggested))
    assert run("select", results, "--classes", listed, "-o", outputs[0]) == 0
    assert run("select", results, "--selection", tmp_path / "s.json", "-o", outputs[1]) == 0
    assert run("select", results, "--keep-suggested", "-o", outputs[2]) == 0
    assert outputs[0].read_text() == outputs[1].read_text() == outputs[2].read_text()
    whole, chosen = labelled(results / "particles.star", results), labelled(outputs[0], results)
    rows = np.flatnonzero(np.isin(whole.metadata["rlnClassNumber"], suggested))
    pd.testing.assert_frame_equal(chosen.metadata, whole.metadata.iloc[rows].reset_index(drop=True))
    np.testing.assert_array_equal(chosen.read(), whole.read(rows))
    assert f"{len(rows)} of 200 particles" in capsys.readouterr().out


def test_select_writes_beside_the_results_and_replaces_nothing_unasked(results, capsys):
    target = results / "selected.star"
    assert run("select", results, "--classes", "1-6") == 0
    assert len(labelled(target, results)) == 200
    before = target.read_text()
    assert run("select", results, "--classes", "1") == 1
    assert "pass --force" in capsys.readouterr().err
    assert target.read_text() == before
    assert run("select", results / "selected.star", "--classes", "1-6", "-o", target, "--force", "-q") == 0
    target.unlink()


def test_exclude_is_the_rest(results, tmp_path):
    labels = class_labels(labelled(results / "particles.star", results))
    some = int(np.bincount(labels).argmax()) + 1
    assert run("select", results, "--classes", some, "-o", tmp_path / "in.star", "-q") == 0
    assert run("select", results, "--classes", some, "--exclude", "-o", tmp_path / "out.star", "-q") == 0
    inside, outside = (labelled(tmp_path / name, results) for name in ("in.star", "out.star"))
    assert len(inside) + len(outside) == 200
    assert set(inside.metadata["rlnClassNumber"]) == {some}
    assert some not in set(outside.metadata["rlnClassNumber"])


@pytest.mark.parametrize("text", ["", "0", "1,", "a", "3-1", "-2", "1.5", "1-2-3"])
def test_lists_of_classes_are_checked(results, text, capsys):
    with pytest.raises(SystemExit) as stop:
        run("select", results, f"--classes={text}")
    assert stop.value.code == 2 and "class numbers from 1" in capsys.readouterr().err


def test_what_cannot_be_selected_is_refused(results, tmp_path, capsys):
    write_selection(tmp_path / "other.json", [1], source={"n_classes": 50})
    write_selection(tmp_path / "empty.json", [])
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    for words, remedy in [
        ((results, "--classes", "7"), "there is no class 7: the last one is 6"),
        ((results, "--selection", tmp_path / "other.json"), "a run with 50 classes"),
        ((results, "--selection", tmp_path / "empty.json"), "selects no class"),
        ((results, "--selection", tmp_path / "bad.json"), "no selection"),
        ((results, "--selection", tmp_path / "none.json"), "no such file"),
        ((results, "--classes", "1-6", "--exclude"), "leaves no particle"),
        ((tmp_path / "none", "--classes", "1"), "there is no"),
        ((tmp_path / "folder", "--classes", "1"), "holds neither particles.star nor particles.cs"),
        ((results.parent / "simulated.star", "--classes", "1"), "has no class numbers"),
        ((results.parent / "simulated.star", "--keep-suggested"), "holds no suggested.json"),
    ]:
        assert run("select", *words, "-o", tmp_path / "x.star") == 1, words
        assert remedy in capsys.readouterr().err, words
    assert not (tmp_path / "x.star").exists()
    assert run("select", results, "--classes", "1", "-o", tmp_path / "no" / "x.star") == 1
    assert "Make it first" in capsys.readouterr().err


def test_a_selection_of_an_earlier_run_is_warned_of(results, tmp_path, capsys):
    write_selection(tmp_path / "s.json", [1, 2, 3, 4, 5, 6], source={"n_classes": 6, "written_at": "2020"})
    assert run("select", results, "--selection", tmp_path / "s.json", "-o", tmp_path / "x.star") == 0
    assert "may be other classes" in capsys.readouterr().err


def test_select_may_change_the_format_and_keeps_all_it_can(results, tmp_path, capsys):
    assert run("convert", results / "particles.star", tmp_path / "particles.cs") == 0
    words = ["--classes", "1-3", "-q"]
    assert run("select", tmp_path, *words) == 0
    assert run("select", tmp_path, *words, "-o", tmp_path / "a.star") == 0
    assert run("select", results, *words, "-o", tmp_path / "b.star") == 0
    one, other = labelled(tmp_path / "a.star", results), labelled(tmp_path / "b.star", results)
    np.testing.assert_array_equal(one.read(), other.read())
    np.testing.assert_allclose(one.ctf.defocus_u_angstrom, other.ctf.defocus_u_angstrom, rtol=1e-6)
    np.testing.assert_allclose(one.poses.shift, other.poses.shift, atol=1e-4)
    np.testing.assert_array_equal(class_labels(one), class_labels(other))
    np.testing.assert_array_equal(class_labels(one), np.load(tmp_path / "selected.cs")["alignments2D/class"])
    assert "CTF" not in capsys.readouterr().err


# ---------------------------------------------------------------- convert
def test_convert_to_cryosparc_and_back(results, tmp_path, capsys):
    assert run("convert", results / "particles.star", tmp_path / "p.cs") == 0
    assert run("convert", tmp_path / "p.cs", tmp_path / "back.star") == 0
    assert "warning" not in capsys.readouterr().err
    before, after = labelled(results / "particles.star", results), labelled(tmp_path / "back.star", results)
    np.testing.assert_array_equal(after.read(), before.read())
    np.testing.assert_allclose(after.poses.shift, before.poses.shift, atol=1e-4)
    np.testing.assert_allclose(after.poses.angle_rad, before.poses.angle_rad, atol=1e-6)
    np.testing.assert_allclose(after.ctf.defocus_u_angstrom, before.ctf.defocus_u_angstrom, rtol=1e-6)
    np.testing.assert_allclose(after.ctf.astigmatism_angle_rad, before.ctf.astigmatism_angle_rad, atol=1e-6)
    for label in ("rlnClassNumber", "rlnImageName", "rlnMicrographName", "smlLatent1", "smlLatent2"):
        assert after.metadata[label].tolist() == before.metadata[label].tolist()
    assert run("convert", tmp_path / "back.star", tmp_path / "again.cs") == 0
    first, second = np.load(tmp_path / "p.cs"), np.load(tmp_path / "again.cs")
    assert first["uid"].tolist() == second["uid"].tolist() and len(set(first["uid"])) == 200


def test_convert_says_what_is_lost(results, tmp_path, capsys):
    blocks = starfile.read(results / "particles.star")
    blocks["particles"]["rlnCoordinateX"] = 1.0
    blocks["optics"]["rlnMtfFileName"] = "mtf.star"
    starfile.write(blocks, tmp_path / "more.star")
    assert run("convert", tmp_path / "more.star", tmp_path / "p.cs") == 0
    assert "not written: rlnCoordinateX, rlnMtfFileName. Keep the input" in capsys.readouterr().err
    assert run("convert", tmp_path / "more.star", tmp_path / "old.star", "--star-version", "3.0") == 0
    assert (
        "1 column has no place in this format and is not written: rlnMtfFileName" in capsys.readouterr().err
    )


def test_convert_between_the_styles_of_star_files(results, tmp_path):
    old, new = tmp_path / "old.star", tmp_path / "new.star"
    assert run("convert", results / "particles.star", old, "--star-version", "3.0", "-q") == 0
    assert run("convert", old, new, "--star-version", "3.1", "-q") == 0
    blocks = starfile.read(old, always_dict=True)
    assert list(blocks) == [""] and {"rlnOriginX", "rlnMagnification", "rlnVoltage"} <= set(
        blocks[""].columns
    )
    stacks = [labelled(path, results) for path in (results / "particles.star", old, new)]
    for stack in stacks[1:]:
        assert stack.pixel_size == pytest.approx(stacks[0].pixel_size)
        np.testing.assert_allclose(stack.poses.shift, stacks[0].poses.shift, atol=2e-5)
        np.testing.assert_array_equal(stack.ctf.defocus_u_angstrom, stacks[0].ctf.defocus_u_angstrom)
        np.testing.assert_array_equal(stack.ctf.voltage_volts, stacks[0].ctf.voltage_volts)
        assert stack.metadata["smlLatent1"].tolist() == stacks[0].metadata["smlLatent1"].tolist()
    assert set(starfile.read(new)["particles"]) == set(stacks[0].metadata)


def test_convert_to_a_stack_writes_the_images(results, tmp_path):
    words = ["--images-dir", results.parent, "-q"]
    assert run("convert", results / "particles.star", tmp_path / "p.mrcs", *words) == 0
    images, _ = read_mrc(tmp_path / "p.mrcs")
    np.testing.assert_array_equal(images, labelled(results / "particles.star", results).read())
    with mrcfile.open(tmp_path / "p.mrcs") as mrc:
        assert mrc.is_image_stack()


def test_what_cannot_be_converted_is_refused(results, tmp_path, capsys):
    (tmp_path / "there.star").write_text("mine")
    for words, remedy in [
        ((tmp_path / "none.star", tmp_path / "x.cs"), "there is no"),
        ((results / "particles.star", tmp_path / "there.star"), "pass --force"),
        ((results / "particles.star", results / "particles.star", "--force"), "the input itself"),
        ((results / "particles.star", tmp_path / "x.txt"), "Change the suffix"),
    ]:
        assert run("convert", *words) == 1, words
        assert remedy in capsys.readouterr().err, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.star"]
    assert (tmp_path / "there.star").read_text() == "mine"
