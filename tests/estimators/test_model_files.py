"""Models come back as they went; anything else is refused, and nothing of a file is ever run."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline, make_pipeline

from sklearn_cryoem import (
    CTFTable,
    DeepClusterer,
    MAPAligner,
    Poses,
    RealigningClusterer,
    SMLClusterer,
    load_model,
    save_model,
)
from sklearn_cryoem._core.validation import ModelFileError
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.estimators.model_files import FORMAT, FORMAT_VERSION, read_model_header
from sklearn_cryoem.physics.fourier import half_plane

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # short fits


@pytest.fixture(scope="module")
def particles():
    return make_particles("ribosome", 120, box=24, snr=0.5, max_shift=20.0, random_state=0)


@pytest.fixture(scope="module")
def pipeline(particles):
    """Aligner and clusterer, fitted briefly."""
    model = make_pipeline(
        MAPAligner(3, n_batches=3, max_iter=1, random_state=0), SMLClusterer(9, max_iter=4, random_state=0)
    )
    return model.fit(particles)


def carrying(value):
    """An unfitted clusterer that has learned `value`."""
    clusterer = SMLClusterer(4)
    clusterer.learned_ = value
    return clusterer


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
    value = (half_plane(16), Poses([0.1, 0.2], [[1, 2], [3, 4]], [True, False]), ctf)
    save_model(carrying(value), tmp_path / "model.npz")
    plane, poses, ctf = load_model(tmp_path / "model.npz").learned_
    np.testing.assert_array_equal(plane.kx, value[0].kx)
    np.testing.assert_array_equal(poses.shift, value[1].shift)
    assert poses.mirrored.tolist() == [True, False]
    np.testing.assert_array_equal(ctf.defocus_u_angstrom, value[2].defocus_u_angstrom)
    with pytest.raises(AttributeError, match="immutable"):
        poses.angle_rad = np.zeros(2)


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
    with pytest.raises(ModelFileError, match=r"learned_ is a .*Save one of .*MAPAligner"):
        save_model(carrying(value), tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


def test_foreign_estimators_are_refused(tmp_path):
    from sklearn.decomposition import PCA

    with pytest.raises(ModelFileError, match="PCA, which a model file cannot hold"):
        save_model(PCA(), tmp_path / "model.npz")
    with pytest.raises(TypeError, match=r"got a str as its first argument.*Pass the estimator first"):
        save_model("model.npz", SMLClusterer(4))


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
    with pytest.raises(ModelFileError, match=r"the file is empty. Copy or export it again"):
        load_model(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="Give a file that save_model wrote"):
        load_model(path)
    np.savez(path, header=np.array("{}"))
    with pytest.raises(ModelFileError, match="Give a file that save_model wrote"):
        load_model(path)
    path.write_text("# a text file")  # numpy would advise to unpickle it
    with pytest.raises(ModelFileError, match="not a model file that save_model wrote, but plain text"):
        load_model(path)
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(tmp_path / "y.npy")
    path.write_text("data_particles\nloop_\n_rlnClassNumber\n1\n")
    with pytest.raises(ModelFileError, match=r"but a STAR file\. Read it as particles"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        load_model(tmp_path / "no.npz")


# ---------------------------------------------------------------- files of strangers
MODELS = {
    "SMLClusterer": SMLClusterer(4),
    "DeepClusterer": DeepClusterer(MAPAligner(3), SMLClusterer(4)),
    "Pipeline": make_pipeline(EigenImages(2), RealigningClusterer(SMLClusterer(4))),
}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=list(MODELS))
def path(request, tmp_path):
    save_model(MODELS[request.param], tmp_path / "model.npz")
    return tmp_path / "model.npz"


@pytest.fixture
def bomb(tmp_path):
    """What must not go off."""
    yield Bomb(tmp_path / "went_off")
    assert not (tmp_path / "went_off").exists()


def rewrite_header(path, **changes):
    """Write a file again with other entries in its header; None removes one."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"])) | changes
    header = {name: value for name, value in header.items() if value is not None}
    np.savez(path, **{**arrays, "header": np.array(json.dumps(header))})


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went_off")))
    assert (tmp_path / "went_off").exists()


@pytest.mark.parametrize("member", ["header", "extra"])
def test_a_pickle_inside_the_archive_is_refused_unopened(path, bomb, member):
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, allow_pickle=True, **{**arrays, member: np.array([bomb], dtype=object)})
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: np.array([bomb], dtype=object)])
def test_a_bare_pickle_is_refused_unopened(tmp_path, bomb, wrap):
    path = tmp_path / "model.npz"
    path.write_bytes(pickle.dumps(wrap(bomb)))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for part in (0.0, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ModelFileError, match=r"save_model wrote|Copy or export it again"):
            load_model(path)


@pytest.mark.parametrize("version", [1, 10**9, "2", None])
def test_other_versions_of_the_format_are_refused(tmp_path, version):
    save_model(SMLClusterer(4), tmp_path / "model.npz")
    rewrite_header(tmp_path / "model.npz", format_version=version)
    with pytest.raises(
        ModelFileError, match="Fit the model again, or load it with the version that wrote it"
    ):
        load_model(tmp_path / "model.npz")


ESTIMATOR = {"$estimator": "SMLClusterer", "parameters": {}}


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ({"$dataclass": "os:system", "fields": {}}, "not part of this library"),
        ({"$dataclass": "sklearn_cryoem_evil:Popen", "fields": {}}, "not part of this library"),
        ({"$dataclass": "sklearn_cryoem.cli.__main__:main", "fields": {}}, "not part of this library"),
        ({"$dataclass": "sklearn_cryoem.particles.tables:np", "fields": {}}, "not a dataclass"),
        ({"$dataclass": "sklearn_cryoem.estimators.model_files:os.system", "fields": {}}, "Fit the model"),
        (
            {"$frozen": {"$dataclass": "subprocess:Popen", "fields": {"args": ["mkdir", "went_off"]}}},
            "not part",
        ),
        ({"$estimator": "Popen", "parameters": {}, "learned": {}}, "unknown to this version"),
        ({"$estimator": "save_model", "parameters": {"path": "went_off"}, "learned": {}}, "unknown to this"),
        ({"$pipeline": [["a", {"$estimator": "Popen", "parameters": {}, "learned": {}}]]}, "unknown to this"),
        ({"$pipeline": 3}, "Fit the model again"),
        ({**ESTIMATOR, "parameters": {"colour": 1}, "learned": {}}, "Fit the model again"),
        ({**ESTIMATOR, "learned": {"__class__": "os"}}, "no model learns"),
        ({**ESTIMATOR, "learned": {"fit": {"$call": "os.system"}}}, "unknown kind of value"),
        ({**ESTIMATOR, "learned": {"a": {"$array": "lost"}}}, "Fit the model again"),
        ({"$tuple": None}, "it holds no estimator"),
        ({}, "it holds no estimator"),
        ([[[]]], "it holds no estimator"),
        ("text", "it holds no estimator"),
        (None, "Fit the model again"),
    ],
    ids=str,
)
def test_headers_that_name_what_is_no_model_run_nothing(model, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sklearn_cryoem.cli.__main__", raising=False)  # importing it runs it
    path = tmp_path / "model.npz"
    save_model(SMLClusterer(4), path)
    rewrite_header(path, model=model)
    with pytest.raises(ModelFileError, match=remedy):
        load_model(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_a_header_too_deep_to_read_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    model = "[" * 100_000 + "]" * 100_000
    header = f'{{"format": "{FORMAT}", "format_version": {FORMAT_VERSION}, "model": {model}}}'
    np.savez(path, header=np.array(header))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
