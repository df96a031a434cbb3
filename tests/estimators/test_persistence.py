"""Models come back as they went: the same parameters, the same predictions; anything else is refused."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline, make_pipeline

from sklearn_cryoem import CTFTable, MAPAligner, Poses, SMLClusterer, load_model, save_model
from sklearn_cryoem._core.exceptions import ModelFileError
from sklearn_cryoem.alignment.mutual import Frames
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators.model_files import read_model_header
from sklearn_cryoem.physics.fourier import half_plane

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # short fits


@pytest.fixture(scope="module")
def particles():
    return make_particles("ribosome", 120, box=24, snr=0.5, max_shift=20.0, random_state=0)


@pytest.fixture(scope="module")
def pipeline(particles):
    """Aligner and clusterer, fitted briefly."""
    model = make_pipeline(
        MAPAligner(3, max_iter=2, random_state=0), SMLClusterer(9, max_iter=4, random_state=0)
    )
    return model.fit(particles)


def carrying(value):
    """An unfitted clusterer that has learned `value`."""
    clusterer = SMLClusterer(4)
    clusterer.learned_ = value
    return clusterer


def rewrite_header(path, change):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(str(arrays["header"]))
    change(header)
    np.savez(path, **{**arrays, "header": np.array(json.dumps(header))})


def test_a_pipeline_loaded_back_predicts_the_same_labels(pipeline, particles, tmp_path):
    save_model(pipeline, tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz")
    assert isinstance(loaded, Pipeline) and [name for name, _ in loaded.steps] == [
        "mapaligner",
        "smlclusterer",
    ]
    unseen = make_particles("ribosome", 40, box=24, snr=0.5, random_state=1)
    for stack in (particles, unseen):
        np.testing.assert_array_equal(loaded.predict(stack), pipeline.predict(stack))
    assert loaded.score(unseen) == pipeline.score(unseen)


def test_what_was_learned_comes_back_bit_by_bit(pipeline, tmp_path):
    for step in pipeline:
        path = tmp_path / f"{type(step).__name__}.npz"
        save_model(step, path)
        loaded = load_model(path)
        assert type(loaded) is type(step) and loaded.get_params() == step.get_params()
        assert set(vars(loaded)) == set(vars(step))
        np.testing.assert_array_equal(loaded.class_averages_, step.class_averages_)
        assert loaded.class_averages_.dtype == step.class_averages_.dtype
        np.testing.assert_array_equal(loaded.labels_, step.labels_)


def test_a_process_that_never_fitted_it_can_use_it(pipeline, particles, tmp_path):
    save_model(pipeline[-1], tmp_path / "model.npz")
    aligned = pipeline[0].transform(particles)
    np.savez(tmp_path / "poses.npz", angle=aligned.poses.angle_rad, shift=aligned.poses.shift)
    code = (
        "import sys, numpy as np; from sklearn_cryoem import load_model, Poses;"
        "from sklearn_cryoem.datasets import make_particles;"
        "stack = make_particles('ribosome', 120, box=24, snr=0.5, max_shift=20.0, random_state=0);"
        "poses = np.load('poses.npz'); stack = stack.with_poses(Poses(poses['angle'], poses['shift']));"
        "np.save('labels.npy', load_model('model.npz').predict(stack))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), pipeline[-1].predict(aligned))


def test_an_unfitted_estimator_keeps_its_parameters(tmp_path):
    estimator = SMLClusterer((4, 5), n_components=2, max_resolution=12.5, random_state=3)
    save_model(estimator, tmp_path / "model.npz")
    assert load_model(tmp_path / "model.npz").get_params() == estimator.get_params()


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, "text", np.float32(0.1), np.int64(7), np.bool_(True), float("inf"), float("-inf"),
        (1, (2, "a")), [1, [2.0, None]], {"a": 1, "b": {"c": (1,)}}, np.float64("inf"),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_come_back_with_value_and_kind(value, tmp_path):
    save_model(carrying(value), tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz").learned_
    assert loaded == value
    assert isinstance(loaded, float) if isinstance(value, float) else type(loaded) is type(value)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "int8", "bool", "U4", ">f4"])
def test_arrays_come_back_bit_by_bit(dtype, tmp_path, rng):
    array = rng.integers(0, 2, size=(3, 4)).astype(dtype)
    save_model(carrying({"deep": [array]}), tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz").learned_["deep"][0]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype


def test_a_model_of_a_table_keeps_the_names_of_its_columns(tmp_path, rng):
    table = pd.DataFrame(rng.standard_normal((30, 3)), columns=["a", "b", "c"])
    model = SMLClusterer((2, 2)).fit(table)
    save_model(model, tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.predict(table), model.labels_)
    assert loaded.feature_names_in_.dtype == object and loaded.feature_names_in_.tolist() == ["a", "b", "c"]


def test_dataclasses_of_the_library_come_back(tmp_path):
    ctf = CTFTable([1e4, 2e4], [1e4, 1.9e4], [0.1, 0.2], 300e3, 2.7e7, 0.1)
    value = (half_plane(16), Poses([0.1, 0.2], [[1, 2], [3, 4]]), ctf)
    save_model(carrying(value), tmp_path / "model.npz")
    plane, poses, ctf = load_model(tmp_path / "model.npz").learned_
    np.testing.assert_array_equal(plane.kx, value[0].kx)
    np.testing.assert_array_equal(poses.shift, value[1].shift)
    np.testing.assert_array_equal(ctf.defocus_u_angstrom, value[2].defocus_u_angstrom)
    with pytest.raises(AttributeError, match="immutable"):
        poses.angle_rad = np.zeros(2)


def test_mirrors_come_back_and_models_saved_before_there_were_any_still_load(tmp_path):
    poses = Poses([0.1, 0.2], [[1, 2], [3, 4]], [True, False])
    frames = Frames(np.array([0, 1]), np.zeros(2), np.zeros((2, 2)), np.array([False, True]))
    path = tmp_path / "model.npz"
    save_model(carrying((poses, frames)), path)
    poses, frames = load_model(path).learned_
    assert poses.mirrored.tolist() == [True, False] and frames.mirrored.tolist() == [False, True]
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    for part in header["model"]["learned"]["learned_"]["$tuple"]:
        del part["fields"]["mirrored"]
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    poses, frames = load_model(path).learned_
    assert not poses.mirrored.any() and not frames.mirrored.any()


def test_a_random_generator_is_left_behind(tmp_path):
    save_model(SMLClusterer(4, random_state=np.random.RandomState(0)), tmp_path / "model.npz")
    assert load_model(tmp_path / "model.npz").random_state is None


def test_the_header_can_be_read_without_the_estimators(pipeline, tmp_path):
    save_model(pipeline, tmp_path / "model.npz")
    header = read_model_header(tmp_path / "model.npz")
    (_, aligner, _), (_, clusterer, parameters) = header["steps"]
    assert (aligner, clusterer) == ("MAPAligner", "SMLClusterer")
    assert parameters["n_clusters"] == 9
    assert header["written_by"].startswith("sklearn-cryoem ")


@pytest.mark.parametrize(
    "value", [object(), np.array([object()]), {1: 2}, lambda: None], ids=["object", "array", "key", "lambda"]
)
def test_what_cannot_be_kept_is_named(value, tmp_path):
    with pytest.raises(ModelFileError, match=r"learned_ is a .*Save a MAPAligner"):
        save_model(carrying(value), tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


def test_foreign_estimators_are_refused(tmp_path):
    from sklearn.decomposition import PCA

    with pytest.raises(ModelFileError, match="PCA, which a model file cannot hold"):
        save_model(PCA(), tmp_path / "model.npz")


def test_an_existing_model_is_not_replaced_unasked(tmp_path):
    save_model(SMLClusterer(4), tmp_path / "model.npz")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_model(SMLClusterer(5), tmp_path / "model.npz")
    save_model(SMLClusterer(5), tmp_path / "model.npz", overwrite=True)
    assert load_model(tmp_path / "model.npz").n_clusters == 5


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no header"):
        load_model(path)
    np.savez(path, header=np.array("{}"))
    with pytest.raises(ModelFileError, match="Give a file that save_model wrote"):
        load_model(path)
    path.write_text("# a text file")  # numpy would advise to unpickle it
    with pytest.raises(ModelFileError, match=r"not a model file, but plain text.*save_model wrote"):
        load_model(path)
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        load_model(tmp_path / "no.npz")


def test_a_truncated_model_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    save_model(carrying(np.zeros(1000)), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "model.npz"
    save_model(SMLClusterer(4), path)
    rewrite_header(path, lambda header: header.update(format_version=99))
    with pytest.raises(ModelFileError, match="Upgrade sklearn-cryoem"):
        load_model(path)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ({"$dataclass": "os:system", "fields": {}}, "not part of this library"),
        ({"$dataclass": "sklearn_cryoem.particles.poses:np", "fields": {}}, "not a dataclass"),
        ({"$estimator": "Popen", "parameters": {}, "learned": {}}, "unknown to this version"),
        ({"$call": "rm"}, "unknown kind of value"),
        ({"$estimator": "SMLClusterer", "parameters": {"colour": 1}, "learned": {}}, "Fit the model again"),
        ({"$array": "lost"}, "Fit the model again"),
    ],
)
def test_headers_that_were_tampered_with_run_nothing(model, remedy, tmp_path):
    path = tmp_path / "model.npz"
    save_model(SMLClusterer(4), path)
    rewrite_header(path, lambda header: header.update(model=model))
    with pytest.raises(ModelFileError, match=remedy):
        load_model(path)
