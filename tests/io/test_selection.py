import json

import numpy as np
import pytest
import starfile

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io import (
    read_mrc,
    read_particles,
    read_selection,
    write_class_averages,
    write_particles,
    write_selection,
)
from sklearn_cryoem.particles import ParticleStack, class_labels, concatenate, select_classes, with_classes


# ------------------------------------------------------------------------------------ selections
def test_a_selection_comes_back(tmp_path):
    source = {"folder": "out", "n_classes": 9}
    write_selection(tmp_path / "s.json", [7, 1, 4, 4], source=source)
    selection = read_selection(tmp_path / "s.json")
    assert (selection.classes, selection.labels, selection.source) == ((1, 4, 7), [0, 3, 6], source)
    assert json.loads((tmp_path / "s.json").read_text()) == {
        "version": 1, "classes": [1, 4, 7], "source": source,
    }  # fmt: skip
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_selection(tmp_path / "s.json", [1])
    write_selection(tmp_path / "s.json", np.array([2]), overwrite=True)
    assert read_selection(tmp_path / "s.json").classes == (2,)


@pytest.mark.parametrize("classes", [[0], [-1], [1.5], ["1"], [True], [None]])
def test_only_class_numbers_are_selected(tmp_path, classes):
    with pytest.raises(ValueError, match="Add 1 to labels"):
        write_selection(tmp_path / "s.json", classes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "cannot be read as JSON.*Export the selection again"),
        ("{", "cannot be read as JSON"),
        ("\x00\xff", "cannot be read as JSON"),
        ("[1, 2]", "no selection.*Export it from a report"),
        ('{"classes": 3}', "no selection"),
        ('{"classes": [0, 1]}', "class numbers from 1"),
        ('{"classes": [1, "2"]}', "class numbers from 1"),
        ('{"classes": [1, null]}', "class numbers from 1"),
        ('{"classes": [1], "version": 2}', "version 2.*Update sklearn-cryoem"),
        ('{"classes": [1], "version": "1"}', "Update sklearn-cryoem"),
    ],
)
def test_what_is_no_selection_is_refused(tmp_path, text, remedy):
    (tmp_path / "s.json").write_text(text, encoding="latin-1")
    with pytest.raises(ParticleDataError, match=rf"s\.json: .*{remedy}"):
        read_selection(tmp_path / "s.json")


def test_a_missing_selection_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file. Check the name"):
        read_selection(tmp_path / "none.json")


# ------------------------------------------------------------------------------------ classes of particles
def test_classes_survive_slicing_joining_writing_and_reading(project):
    stack = read_particles(project.write())
    labels = np.array([0, 1, 2, 2, 1, 0, -1, 0, 2])
    chosen = select_classes(stack, labels, [2, 0])
    assert class_labels(chosen).tolist() == [0, 2, 2, 0, 0, 2]
    np.testing.assert_array_equal(chosen.read(), project.images[[0, 2, 3, 5, 7, 8]])
    write_particles(chosen[::-1], project.folder / "out.star")
    again = read_particles(project.folder / "out.star")
    assert again.metadata["rlnClassNumber"].tolist() == [3, 1, 1, 3, 3, 1]
    assert class_labels(concatenate([again, again[:2]])).tolist() == [2, 0, 0, 2, 2, 0, 2, 0]
    assert again.metadata.drop(columns="rlnClassNumber").equals(
        stack.metadata.iloc[[8, 7, 5, 3, 2, 0]].reset_index(drop=True)
    )
    assert again.optics.equals(stack.optics)
    assert class_labels(concatenate([again[:2], stack[:2]])).tolist() == [2, 0, -1, -1]
    once_more = select_classes(again, None, [2])
    assert class_labels(once_more).tolist() == [2, 2, 2]


def test_classes_that_do_not_exist_are_named():
    stack = ParticleStack(np.ones((3, 4, 4), np.float32))
    assert class_labels(stack) is None
    for labels, classes, remedy in [
        ([0, 1, 3], [2], r"in class\(es\) \[2\].*only in \[0, 1, 3\]. Subtract 1"),
        ([0, 1, 3], [], "Name at least one class"),
        ([0, 1, 3], [0.5], "Name at least one class"),
        ([0, 1], [0], "one label for each particle"),
        ([0, 1, -2], [0], "integers from 0"),
        (None, [0], "no column rlnClassNumber.*Pass labels"),
    ]:
        with pytest.raises(ValueError, match=remedy):
            select_classes(stack, labels, classes)
    with pytest.raises(TypeError, match=r"got a list as its first argument.*Pass the particles first"):
        select_classes([0, 1, 3], stack, [0])
    with pytest.raises(TypeError, match=r"labels is a SMLClusterer.*Pass its `labels_`"):
        select_classes(stack, SMLClusterer(), [0])


def test_cryosparc_particles_keep_cryosparc_classes(shared_data, tmp_path):
    path = shared_data / "metadata" / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    stack = read_particles(path, metadata_only=True)
    assert class_labels(stack).tolist() == np.load(path)["alignments2D/class"].tolist()
    labels = np.arange(22) % 4
    chosen = select_classes(stack, labels, [1, 3])
    write_particles(chosen, tmp_path / "out.cs")
    found = np.load(tmp_path / "out.cs")["alignments2D/class"]
    assert (found.tolist(), found.dtype) == ([1, 3] * 5 + [1], np.uint32)
    with pytest.raises(ValueError, match=r"1 particles have no class \(-1\).*Select the particles"):
        with_classes(stack, labels - (np.arange(22) == 0))
    with pytest.raises(ParticleDataError, match=r"have no class.*a .star file"):
        write_particles(stack, tmp_path / "x.cs", labels=labels - 1)


def test_posterior_and_latent_positions_have_names_in_both_formats(project, shared_data, tmp_path):
    latent, posterior = np.random.default_rng(0).normal(size=(9, 3)), np.linspace(0, 1, 9)
    stack = read_particles(project.write())
    write_particles(stack, tmp_path / "out.star", posterior=posterior, latent_positions=latent)
    table = starfile.read(tmp_path / "out.star")["particles"]
    np.testing.assert_allclose(table[["smlLatent1", "smlLatent2", "smlLatent3"]], latent, atol=1e-6)
    np.testing.assert_allclose(table["rlnMaxValueProbDistribution"], posterior, atol=1e-6)
    path = shared_data / "metadata" / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    sparc = read_particles(path, metadata_only=True)[:9]
    write_particles(sparc, tmp_path / "out.cs", posterior=posterior, latent_positions=latent)
    records = np.load(tmp_path / "out.cs")
    np.testing.assert_allclose(records["sklearn_cryoem/smlLatent2"], latent[:, 1], atol=1e-6)
    np.testing.assert_allclose(records["alignments2D/class_posterior"], posterior, atol=1e-6)
    assert records.dtype["alignments2D/class_posterior"] == np.float32
    with pytest.raises(ValueError, match="Give what transform returns"):
        write_particles(stack, tmp_path / "y.star", latent_positions=posterior)
    with pytest.raises(ValueError, match="one value for each particle"):
        write_particles(stack, tmp_path / "y.star", latent_positions=latent[:4])


# ------------------------------------------------------------------------------------ class averages
def test_class_averages_come_with_their_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    averages = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    star = write_class_averages(
        tmp_path / "c.mrcs", averages, 2.5, sizes=[10, 0, 30], resolutions=[12.5, np.inf, np.nan],
        columns={"clsKeep": [True, False, True]},
    )  # fmt: skip
    assert star == tmp_path / "c_model.star"
    np.testing.assert_array_equal(read_mrc(tmp_path / "c.mrcs")[0], averages)
    table = starfile.read(star, always_dict=True)["model_classes"]
    assert table["rlnReferenceImage"].tolist() == [f"00000{i}@c.mrcs" for i in (1, 2, 3)]
    assert table["rlnClassDistribution"].tolist() == [0.25, 0.0, 0.75]
    assert table["rlnEstimatedResolution"].tolist() == [12.5, 999.0, 999.0]
    assert table["clsKeep"].tolist() == [1, 0, 1]


def test_the_list_of_class_averages_names_them_from_the_working_directory(tmp_path, monkeypatch):
    averages = np.ones((1, 8, 8), np.float32)
    project, run, elsewhere = tmp_path / "project", tmp_path / "project" / "out", tmp_path / "elsewhere"
    run.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    for path, name in [
        ("out/c.mrcs", "out/c.mrcs"),  # as RELION has it
        (run / "c.mrcs", "out/c.mrcs"),
        ("../elsewhere/c.mrcs", str(elsewhere / "c.mrcs")),  # RELION knows no other way to name it
    ]:
        star = write_class_averages(path, averages, overwrite=True)
        table = starfile.read(star, always_dict=True)["model_classes"]
        assert np.atleast_1d(table["rlnReferenceImage"]).tolist() == [f"000001@{name}"]


def test_class_averages_are_written_both_or_neither(tmp_path):
    averages = np.ones((3, 8, 8), np.float32)
    (tmp_path / "c_model.star").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_class_averages(tmp_path / "c.mrcs", averages)
    assert [path.name for path in tmp_path.iterdir()] == ["c_model.star"]
    (tmp_path / "c_model.star").unlink()
    (tmp_path / "c.mrcs").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_class_averages(tmp_path / "c.mrcs", averages)
    assert [path.name for path in tmp_path.iterdir()] == ["c.mrcs"]
    for arguments in ({"sizes": [1]}, {"resolutions": np.ones((3, 2))}, {"columns": {"x": [1, 2]}}):
        with pytest.raises(ValueError, match="Take it from the same fit"):
            write_class_averages(tmp_path / "d.mrcs", averages, **arguments)
    with pytest.raises(ValueError, match="change the suffix"):
        write_class_averages(tmp_path / "d.mrc", averages)
