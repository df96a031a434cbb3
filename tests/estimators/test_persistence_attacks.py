"""Files of strangers: whatever is put into a model file of any estimator, nothing of it is run."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import (
    DeepClusterer,
    MAPAligner,
    RealigningClusterer,
    SMLClusterer,
    load_model,
    save_model,
)
from sklearn_cryoem._core.exceptions import ModelFileError
from sklearn_cryoem.estimators import EigenImages

MODELS = {
    "MAPAligner": MAPAligner(3),
    "SMLClusterer": SMLClusterer(4).fit(np.random.default_rng(0).standard_normal((40, 3))),
    "DeepClusterer": DeepClusterer(MAPAligner(3), SMLClusterer(4)),
    "RealigningClusterer": RealigningClusterer(SMLClusterer(4)),
    "EigenImages": EigenImages(2),
    "Pipeline": make_pipeline(MAPAligner(3), SMLClusterer(4)),
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


def rewrite(path, change):
    """Change the arrays of a file, the header among them, and write it again."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"]))
    change(header, arrays)
    arrays.setdefault("header", np.array(json.dumps(header)))
    np.savez(path, allow_pickle=True, **{**arrays})


def new_header(header, arrays):
    del arrays["header"]


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went_off")))
    assert (tmp_path / "went_off").exists()


@pytest.mark.parametrize("member", ["header", "extra"])
def test_a_pickle_inside_the_archive_is_refused_unopened(path, bomb, member):
    rewrite(path, lambda header, arrays: arrays.update({member: np.array([bomb], dtype=object)}))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: np.array([bomb], dtype=object)])
def test_a_bare_pickle_is_refused_unopened(path, bomb, wrap):
    path.write_bytes(pickle.dumps(wrap(bomb)))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_anywhere_is_refused(path, part):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "Upgrade"), (10**9, "Upgrade"), ("1", "save_model"), (None, "save_model")]
)
def test_other_versions_of_the_format_are_refused(path, version, remedy):
    def change(header, arrays):
        new_header(header, arrays)
        header["format_version"] = version

    rewrite(path, change)
    with pytest.raises(ModelFileError, match=remedy):
        load_model(path)


@pytest.mark.parametrize("missing", ["format_version", "written_by", "model"])
def test_headers_that_lack_something_are_refused(path, missing):
    def change(header, arrays):
        new_header(header, arrays)
        del header[missing]
        if missing == "written_by":
            header["format_version"] = 2  # the message would name the writer

    rewrite(path, change)
    with pytest.raises(ModelFileError, match=r"Fit the model again|Upgrade|save_model"):
        load_model(path)


ESTIMATOR = {"$estimator": "SMLClusterer", "parameters": {}}


@pytest.mark.parametrize(
    "model",
    [
        {"$estimator": "MAPAligner", "parameters": {"topology": "grid"}, "learned": {}},  # of another class
        {"$estimator": "save_model", "parameters": {"estimator": 1, "path": "went_off"}, "learned": {}},
        {"$estimator": "LogisticRegression", "parameters": {}, "learned": {}},
        {**ESTIMATOR, "learned": {"__class__": "os"}},
        {**ESTIMATOR, "learned": {"__dict__": 3}},
        {**ESTIMATOR, "learned": {"fit": {"$call": "os.system"}}},
        {"$pipeline": [["a", {"$estimator": "Popen", "parameters": {}, "learned": {}}]]},
        {"$pipeline": 3},
        {"$frozen": {"$dataclass": "subprocess:Popen", "fields": {"args": ["mkdir", "went_off"]}}},
        {"$dataclass": "sklearn_cryoem_evil:Popen", "fields": {}},
        {"$dataclass": "sklearn_cryoem.cli.__main__:main", "fields": {}},
        {"$dataclass": "sklearn_cryoem.estimators.model_files:os.system", "fields": {}},
        {"$scalar": "O", "value": "x"},
        {"$tuple": None},
        {},
        [[[]]],
        "text",
        None,
    ],
    ids=str,
)
def test_headers_that_name_what_is_no_model_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sklearn_cryoem.cli.__main__", raising=False)  # importing it runs it
    path = tmp_path / "model.npz"
    save_model(SMLClusterer(4), path)

    def change(header, arrays):
        new_header(header, arrays)
        header["model"] = model

    rewrite(path, change)
    with pytest.raises(ModelFileError):
        load_model(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_a_header_too_deep_to_read_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    deep = (
        '{"format": "sklearn-cryoem model", "format_version": 1, "model": '
        + "[" * 100_000
        + "]" * 100_000
        + "}"
    )
    np.savez(path, header=np.array(deep))
    with pytest.raises(ModelFileError, match="save_model wrote"):
        load_model(path)
