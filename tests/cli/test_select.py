"""From a folder of results to a subset, and from one program's files to another's."""

import json
import re
import shutil
import subprocess
import types
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem import MAPAligner, SMLClusterer, estimators, read_particles
from sklearn_cryoem.cli import clean
from sklearn_cryoem.cli import results as results_of_a_run
from sklearn_cryoem.cli.main import main, parse
from sklearn_cryoem.cli.run_folder import run_text
from sklearn_cryoem.datasets import make_ribosome_phantom
from sklearn_cryoem.io import read_mrc, write_mrc, write_particles, write_selection
from sklearn_cryoem.particles import class_labels
from sklearn_cryoem.quality import unlike_their_class
from sklearn_cryoem.quality.match import WEAK

FEW = "--align-classes 4 --align-batches 3 --align-iterations 2 --classes 2x3 --iterations 4 --jobs 1".split()
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


@pytest.fixture
def no_pictures(monkeypatch):
    """They take their time, and tests/cli/test_commands.py looks at them."""
    monkeypatch.setattr(results_of_a_run, "draw", lambda *_: None)


def interrupted(*given, **how):
    raise KeyboardInterrupt


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
    posterior = quality["posterior"][quality["size"] > 0]
    assert posterior.between(0, 1).all() and posterior.max() > 0.5
    assert quality.loc[~quality["keep"], "reasons"].notna().all()
    suggested = json.loads((results / "suggested.json").read_text())
    assert suggested["classes"] == quality.loc[quality["keep"], "class"].tolist()
    summary = json.loads((results / "summary.json").read_text())
    assert suggested["source"] == {"folder": "out", "n_classes": 6, "started_at": summary["started_at"]}
    n_kept = quality["size"][quality["keep"]].sum()
    assert 0.9 * n_kept <= summary["results"]["n_particles_suggested"] <= n_kept
    assert "smlMatch" in read_particles(results / "particles.star", metadata_only=True).metadata
    assert {"smlLatent1", "smlLatent2", "rlnMaxValueProbDistribution"} <= set(stack.metadata.columns)
    assert stack.metadata["rlnMaxValueProbDistribution"].between(0.1, 1).all()
    classes = starfile.read(results / "class_averages_model.star")
    names = [f"00000{i}@{results / 'class_averages.mrcs'}" for i in range(1, 7)]  # it ran elsewhere
    assert classes["rlnReferenceImage"].tolist() == names
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
    assert outputs[0].read_text() == outputs[1].read_text()
    whole, chosen = labelled(results / "particles.star", results), labelled(outputs[0], results)
    like = ~unlike_their_class(chosen.metadata["smlMatch"])
    names = chosen.metadata["rlnImageName"][like].tolist()
    assert labelled(outputs[2], results).metadata["rlnImageName"].tolist() == names
    rows = np.flatnonzero(np.isin(whole.metadata["rlnClassNumber"], suggested))
    as_they_were = whole.metadata.iloc[rows].reset_index(drop=True)
    elsewhere = as_they_were["rlnImageName"].str.replace("@", f"@{results.parent}/")
    pd.testing.assert_frame_equal(chosen.metadata, as_they_were.assign(rlnImageName=elsewhere))
    np.testing.assert_array_equal(read_particles(outputs[0]).read(), whole.read(rows))
    assert f"{len(rows)} of 200 particles" in capsys.readouterr().out
    assert run("select", results, "--classes", listed, "-o", results / "beside.star", "-q") == 0
    pd.testing.assert_frame_equal(read_particles(results / "beside.star").metadata, as_they_were)


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


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_particles_that_are_far_out_are_left_out_and_that_is_said(suffix, results, tmp_path, capsys):
    stack = labelled(results / "particles.star", results)
    labels = class_labels(stack)
    marks = np.zeros(len(stack), bool)
    marks[np.flatnonzero(labels == labels[0])] = True
    marks[np.flatnonzero(labels != labels[0])[:3]] = True
    path = tmp_path / f"particles{suffix}"
    write_particles(stack.with_outliers(marks), path, labels=labels)
    others = ",".join(str(number + 1) for number in np.unique(labels[~marks]))
    assert run("select", path, "--classes", others) == 0
    assert "; 3 outliers (smlOutlier) were left out" in capsys.readouterr().out
    chosen = read_particles(tmp_path / f"selected{suffix}", metadata_only=True, ctf=False)
    assert len(chosen) == np.count_nonzero(~marks)
    assert run("select", path, "--classes", labels[0] + 1, "--force") == 1
    assert "marked as outliers (smlOutlier), which leaves none. Choose other" in capsys.readouterr().err


def test_assign_puts_further_particles_into_the_classes_of_a_run(results, tmp_path, capsys):
    """Of a smaller field and smaller pixels; the folder serves the commands that take one."""
    words = ["--particles", 60, "--box", 40, "--pixel-size", 8, "--snr", 0.5, "--seed", 1, "--jobs", 1, "-q"]
    assert run("simulate", "-o", tmp_path / "new", *words) == 0
    given = ("assign", results, tmp_path / "new" / "particles.star", "-o", tmp_path / "out", "--jobs", 1)
    assert run(*given) == 0
    assert "60 particles in" in capsys.readouterr().out
    stack = read_particles(tmp_path / "out" / "particles.star", images_dir=tmp_path / "new")
    assert (stack.box, len(stack), stack.pixel_size) == (40, 60, 8.0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["results"]["classes"]["size"] == np.bincount(class_labels(stack), minlength=6).tolist()
    averages = [read_mrc(folder / "class_averages.mrcs")[0] for folder in (results, tmp_path / "out")]
    np.testing.assert_array_equal(*averages)
    assert run("report", tmp_path / "out", "-q") == 0
    assert run("select", tmp_path / "out", "--min-posterior", 0.3, "-q") == 0
    assert run("assign", "--config", tmp_path / "out" / "run.yaml", "-o", tmp_path / "again", "-q") == 0
    assert (tmp_path / "again" / "particles.star").read_text() == stack_text(tmp_path / "out")
    (tmp_path / "none").mkdir()
    assert run("assign", tmp_path / "none", given[2], "-o", tmp_path / "x") == 1
    assert "model.npz" in capsys.readouterr().err


def test_merge_keeps_each_particle_once_and_numbers_classes_through(results, tmp_path, capsys):
    for classes in ("1-3", "3-6"):
        assert run("select", results, "--classes", classes, "-o", tmp_path / f"{classes}.star", "-q") == 0
    parts = [tmp_path / "1-3.star", tmp_path / "3-6.star"]
    twice = np.count_nonzero(class_labels(labelled(results / "particles.star", results)) == 2)
    capsys.readouterr()
    assert run("merge", *parts, "-o", tmp_path / "all.star") == 0
    assert (
        f"200 particles in 9 classes written to {tmp_path / 'all.star'}; {twice} were"
        in capsys.readouterr().out
    )
    joined = read_particles(tmp_path / "all.star")
    assert joined.metadata["rlnImageName"].is_unique
    first = np.count_nonzero(class_labels(joined) < 3)
    assert first == len(read_particles(parts[0]))
    assert run("merge", results, results, "-o", tmp_path / "both.star", "-q") == 0
    other = tmp_path / "other"
    shutil.copytree(results, other)
    averages, size = read_mrc(results / "class_averages.mrcs")
    for own, joined in [(averages, averages), (averages[::-1], np.append(averages, averages[::-1], axis=0))]:
        write_mrc(other / "class_averages.mrcs", own, size, overwrite=True)  # with the same, the same classes
        assert run("merge", results, other, "-o", tmp_path / "two.star", "--force", "-q") == 0
        np.testing.assert_array_equal(read_mrc(tmp_path / "two_averages.mrcs")[0], joined)
    capsys.readouterr()
    assert run("merge", results, parts[0], "-o", tmp_path / "c.star") == 0
    said = capsys.readouterr().out
    assert "no averages are written" in said and f"in {6 + 3} classes" in said


def test_merge_takes_the_ctf_into_another_format_and_refuses_two(results, tmp_path, capsys):
    """Also of particles without a box in their file, whose voltage is in no optics group."""
    one = results / "particles.star"
    assert run("convert", one, tmp_path / "a.star", "--star-version", "3.0", "-q") == 0
    assert run("convert", one, tmp_path / "a.cs", "-q") == 0
    assert run("merge", tmp_path / "a.star", tmp_path / "a.star", "-o", tmp_path / "b.star", "-q") == 0
    assert run("merge", tmp_path / "a.star", tmp_path / "a.star", "-o", tmp_path / "b.cs", "-q") == 1
    assert "box of the images is not known" in capsys.readouterr().err
    assert run("merge", one, "-o", tmp_path / "c.cs", "-q") == 0
    assert run("merge", tmp_path / "a.cs", "-o", tmp_path / "c.star", "-q") == 0
    expected = labelled(one, results).ctf
    for name in ("b.star", "c.cs", "c.star"):
        ctf = read_particles(tmp_path / name, metadata_only=True).ctf
        np.testing.assert_allclose(ctf.defocus_u_angstrom, expected.defocus_u_angstrom, rtol=1e-6)
        np.testing.assert_allclose(ctf.voltage_volts, expected.voltage_volts)
    for other, remedy in [("a.cs", "convert first"), ("a.star", "convert --star-version 3.1")]:
        assert run("merge", one, tmp_path / other, "-o", tmp_path / "d.star") == 1
        assert remedy in capsys.readouterr().err
    assert run("convert", tmp_path / "a.star", tmp_path / "e.star", "--star-version", "3.1", "-q") == 0
    assert run("merge", one, tmp_path / "e.star", "-o", tmp_path / "d.star", "-q") == 0
    assert starfile.read(tmp_path / "d.star")["optics"]["rlnVoltage"].notna().all()


def test_merge_replaces_no_images_and_checks_every_target_first(results, tmp_path, capsys):
    images = tmp_path / "both.mrcs"
    images.write_bytes(b"particles")
    (tmp_path / "both_averages_model.star").touch()
    assert run("merge", results, results, "-o", tmp_path / "both.star") == 1
    assert "both_averages_model.star exists" in capsys.readouterr().err
    assert not (tmp_path / "both.star").exists()
    assert run("merge", results, results, "-o", tmp_path / "both.star", "--force", "-q") == 0
    assert images.read_bytes() == b"particles"


def test_compare_pairs_the_classes_of_two_runs_and_lists_what_moved(results, tmp_path, capsys):
    """The second run is the first with other numbers, its averages turned, and three particles elsewhere."""
    stack, other = labelled(results / "particles.star", results), results.parent / "other"
    labels = class_labels(stack)
    number = np.array([3, 4, 5, 0, 1, 2])
    moved = np.flatnonzero(labels == np.bincount(labels).argmax())[:3]
    changed = number[labels]
    changed[moved] = number[np.bincount(labels).argsort()[-2]]
    other.mkdir()
    write_particles(stack, other / "particles.star", labels=changed)
    averages, pixel_size = read_mrc(results / "class_averages.mrcs")
    write_mrc(other / "class_averages.mrcs", np.rot90(averages[number], axes=(1, 2)), pixel_size)
    words = (results, other, "-o", tmp_path / "c")
    assert run("compare", *words) == 0
    said = capsys.readouterr().out
    assert "200 particles in common, 3 moved; adjusted mutual information 0.9" in said
    table = pd.read_csv(tmp_path / "c" / "compare.csv")
    there = table["size"] > 0
    assert (table["partner"] == number + 1)[there].all() and table["moved_in"].sum() == 3
    assert table["correlation"][there].min() > 0.97
    assert set(pd.read_csv(tmp_path / "c" / "moved.csv")["particle"]) == set(
        stack.metadata["rlnImageName"].iloc[moved].str.replace("@", f"@{results.parent}/")
    )
    assert pd.read_csv(tmp_path / "c" / "contingency.csv", index_col=0).to_numpy().sum() == 200
    assert (tmp_path / "c" / "pairs.png").stat().st_size > 1000
    for name in ("compare.csv", "moved.csv", "contingency.csv"):
        (tmp_path / "c" / name).unlink()
    assert run("compare", *words) == 1 and "pairs.png exists" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["pairs.png"]
    assert run("compare", results, "-o", tmp_path / "c") == 1


def test_an_image_named_twice_or_by_another_path_is_one_particle(tmp_path, capsys):
    """The second time it is in another class, which does not count."""
    rows = {"one": ["1@./a.mrcs 1", "2@a.mrcs 2", "3@a.mrcs 2"],
            "two": ["1@a.mrcs 1", "2@b/../a.mrcs 2", "3@a.mrcs 2", "1@a.mrcs 2"]}  # fmt: skip
    for name, lines in rows.items():
        text = "\n".join(["data_", "loop_", "_rlnImageName", "_rlnClassNumber", *lines, ""])
        (tmp_path / f"{name}.star").write_text(text)
    both = (tmp_path / "one.star", tmp_path / "two.star")
    assert run("compare", *both, "-o", tmp_path / "c") == 0
    assert "3 particles in common, 0 moved" in capsys.readouterr().out


def test_classes_are_compared_with_a_known_map(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "out")
    phantom = make_ribosome_phantom()
    write_mrc(tmp_path / "map.mrc", phantom.array, phantom.pixel_size)
    words = ("select", tmp_path / "out", "--min-map-correlation")
    assert run(*words, 0.5) == 1 and "Run sklearn-cryoem report with --map first" in capsys.readouterr().err
    assert run("report", tmp_path / "out", "--map", tmp_path / "map.mrc", "--no-particles", "-q") == 0
    assert "map correlation" in (tmp_path / "out" / "report.html").read_text()
    table = pd.read_csv(tmp_path / "out" / "quality.csv")
    there = table["size"] > 0
    assert table["map_correlation"][there].between(0.2, 1).all()
    limit = table["map_correlation"].median()
    assert run(*words, limit, "--images-dir", results.parent, "-q") == 0
    chosen = read_particles(tmp_path / "out" / "selected.star", metadata_only=True)
    kept = table["class"][there & (table["map_correlation"] >= limit)]
    assert set(chosen.metadata["rlnClassNumber"]) == set(kept)


def test_clean_rejects_in_rounds_and_says_what_and_why(results, tmp_path, capsys):
    given = ("clean", results.parent / "simulated.star", *FEW, "--rounds", 2)
    assert run(*given, "-o", tmp_path / "c", "-q") == 0
    kept = read_particles(tmp_path / "c" / "particles.star")
    left = pd.read_csv(tmp_path / "c" / "rejected.csv")
    assert len(kept) + len(left) == 200 and set(left.columns) == {"particle", "round", "class", "reason"}
    assert not kept.metadata["rlnImageName"].isin(left["particle"]).any()
    final = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert final["command"] == "clean" and final["results"]["n_particles"] == len(kept)
    assert class_labels(kept).max() < 6 and (tmp_path / "c" / "model.npz").is_file()
    is_junk = pd.read_csv(results.parent / "truth.csv")["is_junk"].to_numpy()
    row = left["particle"].str.partition("@")[0].astype(int) - 1
    assert is_junk[row].mean() > 0.8, "what left is junk"
    first = json.loads((tmp_path / "c" / "round_1" / "summary.json").read_text())["results"]
    assert first["n_particles"] == 200 and (tmp_path / "c" / "round_1" / "gallery.png").is_file()
    if (tmp_path / "c" / "round_2").is_dir():
        second = json.loads((tmp_path / "c" / "round_2" / "summary.json").read_text())["results"]
        assert second["n_particles"] <= 200 - (left["round"] == 1).sum()  # fewer if some came back
    capsys.readouterr()
    assert run(*given, "-o", tmp_path / "c") == 1 and "pass --force" in capsys.readouterr().err
    if len(left) > 4:
        assert run(*given, "-o", tmp_path / "d", "--max-rejected", 2, "-q") == 1
        assert "raise the limit or select classes by hand" in capsys.readouterr().err


def test_choose_compares_candidates_by_particles_held_out(results, tmp_path, capsys):
    words = ("--classes", 4, 9, "--dimensions", 2, "--max-resolution", 60, "--iterations", 3, "--jobs", 1)
    given = (results / "particles.star", "--images-dir", results.parent, "--skip-align", *words)
    assert run("choose", *given, "-o", tmp_path / "c") == 0
    table = pd.read_csv(tmp_path / "c" / "choose.csv")
    assert table["classes"].tolist() == [4, 9] and table["recommended"].sum() == 1
    assert table["below_best"].min() == 0 and (table["error"][table["below_best"] > 0] > 0).all()
    best = table[table["recommended"]].iloc[0]
    assert best["below_best"] <= best["error"]
    assert f"recommended: --classes {best['classes']:.0f} --latent-dim 2" in capsys.readouterr().out
    assert (tmp_path / "c" / "choose.png").is_file()
    again = parse(["choose", "--config", str(tmp_path / "c" / "run.yaml"), "-o", "x"])
    assert (again.classes, again.dimensions, again.skip_align) == ([4, 9], [2], True)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--topology", "ring", "--dimensions", 2), "--latent-dim"),
        (("--topology", "sphere", "--classes", 2, 9), "expected at least 4"),
        (("--classes", 4, 900), "Ask for fewer"),
    ],
)
def test_choose_refuses_candidates_before_it_aligns(words, remedy, results, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(MAPAligner, "fit")
    given = (results.parent / "simulated.star", "--jobs", 1, *words)
    assert run("choose", *given, "-o", tmp_path / "c") == 1
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(("topology", "dimensions"), [("ring", [1]), ("torus", [2]), ("sphere", [2])])
def test_choose_tries_the_dimensions_of_the_shape(topology, dimensions, results, tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "choose_classes", lambda *given: pytest.fail(str(given[3])))
    given = (results / "particles.star", "--images-dir", results.parent, "--skip-align", "--classes", 9)
    with pytest.raises(pytest.fail.Exception, match=re.escape(str(dimensions))):
        run("choose", *given, "--topology", topology, "--jobs", 1, "-o", tmp_path / "c")


@pytest.mark.usefixtures("no_pictures")
def test_clean_takes_a_bare_stack_and_goes_on(results, tmp_path, monkeypatch):
    """The second round reads a table without a CTF; finished fits are not done again."""
    monkeypatch.setattr(clean, "_AT_REST", 0.0)
    stack = results.parent / "particles.mrcs"
    given = ("clean", stack, *FEW, "--pixel-size", 6, "--rounds", 2, "-q")
    assert run(*given, "-o", tmp_path / "whole") == 0
    second = json.loads((tmp_path / "whole" / "round_2" / "summary.json").read_text())
    assert second["options"]["no_ctf"] and not list(tmp_path.glob("whole/*/unfinished"))
    with monkeypatch.context() as patch:
        patch.setattr(clean, "_found_again", interrupted)
        assert run(*given, "-o", tmp_path / "cut") == 130
    assert not (tmp_path / "cut" / "particles.star").exists()
    for done in (MAPAligner, SMLClusterer):
        monkeypatch.setattr(done, "fit", interrupted)
    assert run(*given, "-o", tmp_path / "cut") == 0
    for name in ("particles.star", "rejected.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_clean_finds_the_images_of_a_cs_file_in_each_round(results, tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "_AT_REST", 0.0)
    assert run("convert", results.parent / "simulated.star", results.parent / "clean.cs", "-q") == 0
    table = shutil.move(results.parent / "clean.cs", tmp_path / "clean.cs")
    given = ("clean", table, "--images-dir", results.parent, *FEW, "--rounds", 2, "-q")
    assert run(*given, "-o", tmp_path / "c") == 0
    assert (tmp_path / "c" / "round_2" / "left.cs").exists() and (tmp_path / "c" / "particles.cs").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("words", [("--skip-align",), ("--angle-range", 20)])
def test_clean_from_poses_of_the_file_finds_again_what_matches(words, results, tmp_path, monkeypatch):
    def weak(model, stack, *given, **how):
        return np.where(np.arange(len(stack)) < 9, f"{WEAK} 1, usual is 9", "")

    monkeypatch.setattr("sklearn_cryoem.quality.reasons_to_leave", weak)
    monkeypatch.setattr(clean, "_AGAIN_SHARE", 0.0)
    given = ("clean", results / "particles.star", "--images-dir", results.parent, *FEW, *words)
    assert run(*given, "--rounds", 2, "-o", tmp_path / "c", "-q") == 0
    before, after = (labelled(folder / "particles.star", results) for folder in (results, tmp_path / "c"))
    assert 182 < len(after) <= 200
    row = after.metadata["rlnImageName"].str.partition("@")[0].astype(int).to_numpy() - 1
    turned = np.angle(np.exp(1j * (after.poses.angle_rad - before.poses.angle_rad[row])))
    assert abs(turned).max() < (1e-6 if "--skip-align" in words else np.radians(20.001))


def test_select_like_before_follows_what_was_learned(results, tmp_path, capsys):
    """The table of a larger run with a taste for fine detail, and the classes of this one by it."""
    rng, table = np.random.default_rng(0), pd.read_csv(results / "quality.csv")
    many = table.iloc[rng.integers(0, 6, 40)].assign(**{"class": np.arange(1, 41), "size": 30})
    many["resolution"] = rng.uniform(10, 60, 40)
    many.to_csv(tmp_path / "quality.csv", index=False)
    write_selection(tmp_path / "selection.json", many["class"][many["resolution"] < 30].tolist())
    assert run("learn-selection", tmp_path / "selection.json", "-o", tmp_path / "mine.json") == 0
    said = capsys.readouterr().out
    assert "learned from 40 classes of 1 run" in said and "what counts most: resolution (-" in said
    shutil.copytree(results, tmp_path / "out")
    table["resolution"] = [12.0, 55.0, 14.0, 58.0, 11.0, 57.0]
    table["size"] = np.maximum(table["size"], 1)
    table.to_csv(tmp_path / "out" / "quality.csv", index=False)
    words = ("--like", tmp_path / "mine.json", "--images-dir", results.parent, "-q")
    assert run("select", tmp_path / "out", *words, "-o", tmp_path / "like.star") == 0
    assert set(read_particles(tmp_path / "like.star").metadata["rlnClassNumber"]) <= {1, 3, 5}
    assert run("learn-selection", tmp_path / "out" / "suggested.json", "-o", tmp_path / "x.json") == 1
    assert "Give selections of more runs" in capsys.readouterr().err


def stack_text(folder):
    return (folder / "particles.star").read_text()


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


def test_rules_on_particles_say_what_they_take(results, tmp_path, capsys):
    stack = labelled(results / "particles.star", results)
    labels, match = class_labels(stack), stack.metadata["smlMatch"].to_numpy()
    rng, posterior = np.random.default_rng(0), np.linspace(0.1, 0.9, 200).round(3)
    stack = stack.with_metadata(rlnMaxValueProbDistribution=posterior)
    place = {f"rlnCoordinate{axis}": rng.uniform(0, 400, 200).round(1) for axis in "XY"}
    write_particles(
        stack.with_metadata(rlnMicrographName=["a.mrc"] * 200, **place), tmp_path / "particles.star"
    )
    shutil.copy(results / "class_averages.mrcs", tmp_path)

    def chosen(*words, ok=True):
        assert run("select", tmp_path / "particles.star", *words, "-o", tmp_path / "x.star", "--force") == (
            not ok
        )
        said = capsys.readouterr()
        return labelled(tmp_path / "x.star", results) if ok else None, said.out if ok else said.err

    median = float(np.median(posterior))
    sure, said = chosen("--min-posterior", median)
    assert len(sure) == (posterior >= median).sum() and f"with a posterior below {median:g}" in said
    most = np.bincount(labels).argmax() + 1
    best, said = chosen("--classes", most, "--drop-worst", 25)
    rows = np.flatnonzero(labels == most - 1)
    assert "among the worst 25 % of their classes" in said
    assert len(best) == len(rows) - len(rows) // 4
    assert best.metadata["smlMatch"].min() == np.sort(match[rows])[len(rows) // 4]
    few, _ = chosen("--max-per-class", 5, "--averages", tmp_path / "few.mrcs")
    assert np.bincount(class_labels(few)).max() == 5
    averages = starfile.read(tmp_path / "few_model.star")
    numbers = np.unique(class_labels(few))
    assert averages["rlnClassNumber"].tolist() == (numbers + 1).tolist()
    whole = read_mrc(results / "class_averages.mrcs")[0]
    np.testing.assert_array_equal(read_mrc(tmp_path / "few.mrcs")[0], whole[numbers])
    once, said = chosen("--min-distance", 60, "--micrograph-pixel-size", 2, "--recenter")
    assert 20 < len(once) < 200 and "closer than 60 A to another one" in said
    assert "extract the particles again" in said and np.abs(once.poses.shift).max() <= 1.0
    assert "--exclude needs classes" in chosen("--exclude", ok=False)[1]
    assert "Choose a milder rule" in chosen("--classes", most, "--min-posterior", 0.999999, ok=False)[1]
    error = chosen("--min-distance", 60, ok=False)[1]
    assert "Pass --micrograph-pixel-size, in" in error


def test_what_cannot_be_selected_is_refused(results, tmp_path, capsys):
    write_selection(tmp_path / "other.json", [1], source={"n_classes": 50})
    write_selection(tmp_path / "empty.json", [])
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(results / "particles.star", tmp_path / "bare")
    shutil.copy(results / "particles.star", tmp_path / "both.star")
    for words, remedy in [
        ((results, "--classes", "7"), "there is no class 7: the last one is 6"),
        ((results, "--classes", "5-99,120"), "there is no class 7-99,120: the last one is 6"),
        ((results, "--selection", tmp_path / "other.json"), "a run with 50 classes"),
        ((results, "--selection", tmp_path / "empty.json"), "selects no class"),
        ((results, "--selection", tmp_path / "bad.json"), "no selection"),
        ((results, "--selection", tmp_path / "none.json"), "no such file"),
        ((results, "--classes", "1-6", "--exclude"), "leaves no particle"),
        ((tmp_path / "none", "--classes", "1"), "there is no"),
        ((tmp_path / "folder", "--classes", "1"), "holds neither particles.star nor particles.cs"),
        ((results.parent / "simulated.star", "--classes", "1"), "has no class numbers"),
        ((results.parent / "simulated.star", "--keep-suggested"), "may mean other classes"),
        ((tmp_path / "bare" / "particles.star", "--keep-suggested"), "holds no suggested.json"),
        ((tmp_path / "both.star", "--min-map-correlation", "0.5"), "Give the folder of the run"),
    ]:
        assert run("select", *words, "-o", tmp_path / "x.star") == 1, words
        assert remedy in capsys.readouterr().err, words
    assert not (tmp_path / "x.star").exists()
    assert run("select", results, "--classes", "1", "-o", tmp_path / "no" / "x.star") == 1
    assert "Make it first" in capsys.readouterr().err


def test_a_selection_of_an_earlier_run_is_warned_of(results, tmp_path, capsys):
    write_selection(tmp_path / "s.json", [1, 2, 3, 4, 5, 6], source={"n_classes": 6, "started_at": "2020"})
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


def test_a_run_that_lies_elsewhere_names_the_images_that_it_was_made_of(
    results, tmp_path, monkeypatch, capsys
):
    """Its particles have the names of its input, which are found from there, as the summary says."""
    shutil.copytree(results, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert run("select", "moved", "--classes", "1-6", "-o", "x.star") == 0
    said = capsys.readouterr()
    assert f"particles.mrcs is named {results.parent / 'particles.mrcs'}" in said.out
    assert "found" not in said.err
    np.testing.assert_array_equal(read_particles("x.star").read([7]), labelled("x.star", results).read([7]))
    (tmp_path / "moved" / "summary.json").unlink()
    assert run("select", "moved", "--classes", "1-6", "-o", "lost.star") == 0
    assert "particles.mrcs will not be found from lost.star" in capsys.readouterr().err
    words = ("--images-dir", results.parent, "-o", "found.star", "-q")
    assert run("select", "moved", "--classes", "1-6", *words) == 0
    assert (tmp_path / "found.star").read_text() == (tmp_path / "x.star").read_text()


def test_files_of_a_job_are_passed_through_by_every_command(results, tmp_path, monkeypatch, capsys):
    """Alignments, images and CTF in three files, as cryoSPARC leaves them."""
    monkeypatch.chdir(results.parent)
    assert run("convert", results / "particles.star", tmp_path / "all.cs", "-q") == 0
    records = np.load(tmp_path / "all.cs")
    parts = {"alignments2D": "J1_particles.cs", "blob": "images.cs", "ctf": "ctf.cs"}
    for prefix, name in parts.items():
        with open(tmp_path / name, "wb") as file:
            np.save(file, records[["uid", *[n for n in records.dtype.names if n.startswith(prefix)]]].copy())
    job, images, ctf = (tmp_path / name for name in parts.values())
    both = ("--passthrough", images, "--passthrough", ctf)
    assert run("info", job, "--images-dir", results.parent) == 1
    assert "Pass --passthrough" in capsys.readouterr().err
    where = ("--images-dir", results.parent)
    assert run("info", job, *both, *where, "--json", "--no-checks") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["particles"], facts["ctf"], facts["images"]) == (200, "yes", "found")
    assert run("select", job, *both, "--classes", "1", "-o", tmp_path / "s.star", *where, "-q") == 0
    n_first = (records["alignments2D/class"] == 0).sum()
    assert len(read_particles(tmp_path / "s.star")) == n_first
    assert run("convert", job, tmp_path / "c.star", *both, *where, "-q") == 0
    assert read_particles(tmp_path / "c.star").ctf is not None
    run_yaml = tmp_path / "run.yaml"
    run_yaml.write_text(run_text("classify", {"passthrough": [images, ctf], "particles": job}))
    parsed = parse(["classify", "--config", str(run_yaml), "-o", "x"])
    assert (parsed.passthrough, parsed.particles) == ([images, ctf], job)
    parsed = parse(["classify", "--config", str(run_yaml), "-o", "x", "--passthrough=other.cs"])
    assert parsed.passthrough == [Path("other.cs")]
    run_yaml.write_text(run_text("classify", {"passthrough": [], "particles": job}))
    assert parse(["classify", "--config", str(run_yaml), "-o", "x"]).passthrough == []


# ---------------------------------------------------------------- convert
def test_convert_to_cryosparc_and_back(results, tmp_path, capsys):
    assert run("convert", results / "particles.star", tmp_path / "p.cs") == 0
    assert "warning" not in capsys.readouterr().err
    assert run("convert", tmp_path / "p.cs", tmp_path / "back.star") == 0
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "particles.mrcs will not be found from" in said and "Pass --images-dir" in said
    before, after = read_particles(results / "particles.star"), labelled(tmp_path / "back.star", results)
    np.testing.assert_array_equal(after.read(), before.read())
    np.testing.assert_allclose(after.poses.shift, before.poses.shift, atol=1e-4)
    np.testing.assert_allclose(after.poses.angle_rad, before.poses.angle_rad, atol=1e-6)
    np.testing.assert_allclose(after.ctf.defocus_u_angstrom, before.ctf.defocus_u_angstrom, rtol=1e-6)
    np.testing.assert_allclose(after.ctf.astigmatism_angle_rad, before.ctf.astigmatism_angle_rad, atol=1e-6)
    for label in ("rlnClassNumber", "rlnImageName", "rlnGroupName", "smlLatent1", "smlLatent2"):
        assert after.metadata[label].tolist() == before.metadata[label].tolist()
    assert run("convert", tmp_path / "back.star", tmp_path / "again.cs") == 0
    first, second = np.load(tmp_path / "p.cs"), np.load(tmp_path / "again.cs")
    assert first["uid"].tolist() == second["uid"].tolist() and len(set(first["uid"])) == 200


def test_convert_to_another_folder_keeps_images_to_be_found(results, tmp_path, monkeypatch, capsys):
    """As they were where that does; else from the project, which is where the command runs, or absolute."""
    project, name = results.parent, "000001@particles.mrcs"
    monkeypatch.chdir(tmp_path)
    for folder, first in [
        (project, name),
        (results, name),
        (tmp_path, f"000001@{project / 'particles.mrcs'}"),
    ]:
        assert run("convert", results / "particles.star", folder / "moved.star") == 0
        said = f"particles.mrcs is named {project / 'particles.mrcs'}"
        assert (said in capsys.readouterr().out) == (folder == tmp_path)
        moved = read_particles(folder / "moved.star")
        assert moved.metadata["rlnImageName"].iloc[0] == first
        np.testing.assert_array_equal(moved.read([7]), read_particles(results / "particles.star").read([7]))
    monkeypatch.chdir(project.parent)
    assert run("convert", results / "particles.star", tmp_path / "again.star", "-q") == 0
    names = read_particles(tmp_path / "again.star").metadata["rlnImageName"]
    assert names.iloc[0] == f"000001@{project.name}/particles.mrcs"
    assert run("convert", results / "particles.star", tmp_path / "p.cs") == 0
    assert f"find particles.mrcs with --images-dir {project.name}\n" in capsys.readouterr().out
    back = read_particles(tmp_path / "p.cs", images_dir=project.name)  # its names are cryoSPARC's business
    np.testing.assert_array_equal(back.read([7]), read_particles(results / "particles.star").read([7]))


def test_convert_names_images_that_were_moved(results, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "lost").mkdir()
    shutil.copy(results / "particles.star", tmp_path / "lost")
    shutil.copy(results.parent / "particles.mrcs", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert run("convert", "lost/particles.star", "as_it_was.star", "-q") == 0, "there is nothing to look for"
    assert run("convert", "lost/particles.star", "found.star", "--images-dir", "images", "-q") == 0
    names = read_particles("found.star").metadata["rlnImageName"]
    assert names.iloc[-1] == "000200@images/particles.mrcs"
    kept = starfile.read("as_it_was.star")["particles"]["rlnImageName"]
    assert kept.iloc[-1] == "000200@particles.mrcs"


def test_another_stack_of_the_same_name_is_not_taken_for_the_images(results, tmp_path, monkeypatch):
    """A STAR file that is moved beside other images of the same name would silently mean those."""
    with mrcfile.new(tmp_path / "particles.mrcs", np.zeros((200, 32, 32), np.float32)) as mrc:
        mrc.set_image_stack()
    monkeypatch.chdir(tmp_path)
    assert run("convert", results / "particles.star", "moved.star", "-q") == 0
    assert read_particles("moved.star").read([0]).any()


# ---------------------------------------------------------------- convert --float32
@pytest.fixture
def half_precision(results, tmp_path, monkeypatch):
    """The particles in a project whose stacks are of 16-bit numbers, two of them, rows mixed."""
    stack = read_particles(results / "particles.star")
    images, blocks = stack.read(), starfile.read(results / "particles.star")
    (tmp_path / "Extract").mkdir()
    for number, part in enumerate((images[:80], images[80:])):
        with mrcfile.new(tmp_path / "Extract" / f"m{number}.mrcs", part.astype(np.float16)) as mrc:
            mrc.set_image_stack()
            mrc.voxel_size = stack.pixel_size
    names = [f"{i % 80 + 1:06d}@Extract/m0.mrcs" for i in range(80)]
    names += [f"{i + 1:06d}@Extract/m1.mrcs" for i in range(120)]
    order = np.random.default_rng(0).permutation(200)
    blocks["particles"] = blocks["particles"].assign(rlnImageName=names).iloc[order]
    starfile.write(blocks, tmp_path / "half.star")
    monkeypatch.chdir(tmp_path)
    return images[order].astype(np.float16).astype(np.float32), [names[row] for row in order]


def test_float32_writes_the_images_and_a_table_of_them(half_precision, tmp_path, capsys):
    images, names = half_precision
    (tmp_path / "whole").mkdir()
    assert run("convert", "half.star", "whole/p.star", "--float32") == 0
    assert "32-bit numbers, are in whole/p.mrcs" in capsys.readouterr().out
    with mrcfile.open("whole/p.mrcs") as mrc:
        assert mrc.header.mode == 2 and mrc.is_image_stack()
        np.testing.assert_array_equal(mrc.data, images)
    new, old = read_particles("whole/p.star"), read_particles("half.star")
    table = new.metadata
    assert table["rlnImageName"].iloc[-1] == "000200@whole/p.mrcs", "as RELION counts from its project"
    assert table["rlnImageOriginalName"].tolist() == names
    others = table.drop(columns=["rlnImageName", "rlnImageOriginalName"])
    pd.testing.assert_frame_equal(others, old.metadata.drop(columns="rlnImageName"))
    pd.testing.assert_frame_equal(new.optics, old.optics)
    np.testing.assert_array_equal(new.read(), images)


def test_float32_replaces_nothing_that_it_needs(half_precision, tmp_path, capsys):
    assert run("convert", "half.star", "p.star", "--float32", "-q") == 0
    before = (tmp_path / "p.mrcs").read_bytes()
    for words, remedy in [
        (("p.star", "q.cs"), "Give a .star file"),
        (("half.star", "p.star"), "pass --force"),
        (("p.star", "p.star", "--force"), "the input itself"),
        (("p.mrcs", "p.star", "--force"), "the input itself"),
    ]:
        assert run("convert", *words, "--float32") == 1
        assert remedy in capsys.readouterr().err
    shutil.copy("p.star", "other.star")
    Path("p.star").unlink()
    assert run("convert", "other.star", "p.star", "--float32", "--force") == 1
    assert "holds the images that are read" in capsys.readouterr().err
    assert (tmp_path / "p.mrcs").read_bytes() == before
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_float32_on_a_full_disk_says_so_first(half_precision, monkeypatch, tmp_path, capsys):
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=800_000))
    assert run("convert", "half.star", "p.star", "--float32") == 1
    assert "No room for p.mrcs: it will have 800.0 kB, and 781.2 kB are free" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_takes_the_float32_copy(half_precision):
    images, _ = half_precision
    assert run("convert", "half.star", "whole.star", "--float32", "-q") == 0
    command = ["relion_stack_create", "--i", "whole.star", "--o", "theirs"]
    subprocess.run(command, capture_output=True, check=True)
    np.testing.assert_array_equal(read_mrc("theirs.mrcs")[0], images)


def test_convert_says_what_is_lost(results, tmp_path, capsys):
    blocks = starfile.read(results / "particles.star")
    blocks["particles"]["rlnCoordinateX"] = 1.0
    blocks["optics"]["rlnMtfFileName"] = "mtf.star"
    starfile.write(blocks, tmp_path / "more.star")
    assert run("convert", tmp_path / "more.star", tmp_path / "p.cs") == 0
    assert "not written: rlnCoordinateX, rlnMtfFileName. Keep the input" in capsys.readouterr().err
    assert run("convert", tmp_path / "more.star", tmp_path / "old.star", "--star-version", "3.0") == 0
    assert "columns without a place in this format are not written: rlnMtfFileName" in capsys.readouterr().err


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


def test_initial_model_writes_a_map_and_its_picture(results, tmp_path, capsys, monkeypatch):
    few = {"n_init": 2, "n_batches": 10, "max_iter": 3}
    monkeypatch.setattr(estimators, "initial_model", partial(estimators.initial_model, **few))
    target = tmp_path / "map.mrc"
    given = ("initial-model", results, "-o", target, "--all", "--max-resolution", 90, "--jobs", 1)
    assert run(*given) == 0
    assert re.search(r"log likelihood of the starts: [-\d.]+, [-\d.]+\n", capsys.readouterr().out)
    volume, pixel_size = read_mrc(target)
    assert volume.shape == (32, 32, 32)
    assert pixel_size == pytest.approx(read_mrc(results / "class_averages.mrcs")[1])
    assert target.with_suffix(".png").stat().st_size > 1000
    assert run(*given) == 1
    assert "pass --force" in capsys.readouterr().err
    assert run("initial-model", tmp_path, "-o", tmp_path / "no.mrc") == 1
    assert "Give the folder of a finished run" in capsys.readouterr().err
    assert run("initial-model", results, "-o", tmp_path / "x.png") == 1
    assert "expected one in .mrc" in capsys.readouterr().err and not (tmp_path / "x.png").exists()
