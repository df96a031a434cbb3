"""A ParticleStack goes through scikit-learn unchanged, and images and CTF never go out of step."""

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin, clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    ShuffleSplit,
    cross_val_score,
    cross_validate,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import _safe_indexing, indexable, resample, shuffle
from sklearn.utils.validation import _num_samples

from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc, write_mrc_blocks

N_IMAGES = 30


@pytest.fixture(params=["in memory", "in files", "in files, preprocessed"])
def stack(request, tmp_path):
    """Images carry their row in one pixel, the CTF in its defocus, poses in their angle."""
    rows = np.arange(N_IMAGES, dtype=np.float64)
    images = np.random.default_rng(0).normal(size=(N_IMAGES, 8, 8)).astype(np.float32)
    images[:, 4, 4] = rows
    source = images
    if request.param != "in memory":
        for part in range(3):
            block = images[10 * part : 10 * part + 10]
            path = tmp_path / f"{part}.mrcs"
            write_mrc_blocks(path, [block], block.shape, pixel_size=2.0, is_stack=True)
        files = [inspect_mrc(tmp_path / f"{part}.mrcs") for part in range(3)]
        source = FileSource(files, np.arange(N_IMAGES) // 10, np.arange(N_IMAGES) % 10)
    made = ParticleStack(
        source,
        pixel_size=2.0,
        ctf=CTFTable(
            defocus_u_angstrom=10000.0 + rows,
            defocus_v_angstrom=10000.0,
            astigmatism_angle_rad=0.0,
            voltage_volts=300e3,
            cs_angstrom=2.7e7,
            amplitude_contrast=0.1,
        ),
        poses=Poses(0.01 * rows, np.zeros((N_IMAGES, 2))),
        noise_group=np.arange(N_IMAGES) // 6,
    )
    return made.invert_contrast().invert_contrast() if request.param.endswith("preprocessed") else made


def rows_in_step(stack):
    """Rows of the whole set that a stack holds; fails if its parts disagree."""
    by_image = np.rint(stack.read()[:, 4, 4]).astype(int)
    by_ctf = np.rint(stack.ctf.defocus_u_angstrom - 10000.0).astype(int)
    by_pose = np.rint(stack.poses.angle_rad * 100).astype(int)
    np.testing.assert_array_equal(by_image, by_ctf)
    np.testing.assert_array_equal(by_image, by_pose)
    np.testing.assert_array_equal(by_image // 6, stack.noise_group)
    return by_image


class RowReader(ClusterMixin, TransformerMixin, BaseEstimator):
    """Estimator that only records which rows it sees."""

    def __init__(self, offset=0, reference=None):
        self.offset = offset
        self.reference = reference

    def fit(self, X, y=None):
        self.rows_ = rows_in_step(X)
        self.labels_ = self.rows_ % 3
        return self

    def transform(self, X):
        return X.with_poses(Poses(X.poses.angle_rad, X.poses.shift + 1.0))

    def predict(self, X):
        return rows_in_step(X) % 3

    def score(self, X, y=None):
        assert not set(rows_in_step(X)) & set(self.rows_)
        return -abs(self.offset - 2.0)


def test_scikit_learn_takes_it_for_samples(stack):
    assert _num_samples(stack) == N_IMAGES
    assert indexable(stack, np.arange(N_IMAGES))[0] is stack


@pytest.mark.parametrize("key", [3, [5, 1], np.array([7, 7]), slice(2, 9), np.arange(N_IMAGES) % 4 == 0])
def test_safe_indexing(stack, key):
    expected = np.atleast_1d(np.arange(N_IMAGES)[key])
    assert rows_in_step(_safe_indexing(stack, key)).tolist() == expected.tolist()


def test_train_test_split_keeps_all_in_step(stack):
    train, test, y_train, y_test = train_test_split(stack, np.arange(N_IMAGES), random_state=0)
    assert rows_in_step(train).tolist() == y_train.tolist()
    assert rows_in_step(test).tolist() == y_test.tolist()
    assert rows_in_step(train).tolist() != sorted(y_train)  # it was shuffled indeed


def test_resample_and_shuffle(stack):
    assert sorted(rows_in_step(shuffle(stack, random_state=0))) == list(range(N_IMAGES))
    drawn, y = resample(stack, np.arange(N_IMAGES), n_samples=50, random_state=0)
    assert rows_in_step(drawn).tolist() == y.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_cross_validation_never_parts_an_image_from_its_ctf(stack, seed):
    seen = []
    for train, test in KFold(5, shuffle=True, random_state=seed).split(stack):
        assert rows_in_step(stack[train]).tolist() == train.tolist()
        assert rows_in_step(stack[train][::-1][3:9]).tolist() == train[::-1][3:9].tolist()
        seen += rows_in_step(stack[test]).tolist()
    assert sorted(seen) == list(range(N_IMAGES))


def test_cross_validation_functions(stack):
    assert cross_val_score(RowReader(2), stack, cv=3).tolist() == [0.0] * 3
    found = cross_validate(RowReader(), stack, cv=ShuffleSplit(4, random_state=0), return_estimator=True)
    assert all(len(estimator.rows_) == 27 for estimator in found["estimator"])
    groups = stack.noise_group
    for train, test in GroupKFold(3).split(stack, groups=groups):
        assert not set(stack[train].noise_group) & set(stack[test].noise_group)


def test_grid_search_over_a_pipeline(stack):
    pipeline = make_pipeline(RowReader(), RowReader())
    search = GridSearchCV(
        pipeline, {"rowreader-2__offset": [0, 2, 5]}, cv=KFold(3, shuffle=True, random_state=0)
    )
    search.fit(stack)
    assert search.best_params_ == {"rowreader-2__offset": 2}
    assert rows_in_step(stack[:5]).tolist() == search.best_estimator_[0].rows_.tolist()[:5]
    assert search.predict(stack[4:8]).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("stack", ["in files"], indirect=True)  # starting processes takes seconds
def test_grid_search_in_other_processes(stack):
    search = GridSearchCV(RowReader(), {"offset": [0, 2]}, cv=2, n_jobs=2)
    with joblib.parallel_config("loky"):
        search.fit(stack)
    assert search.best_params_ == {"offset": 2}


def test_a_pipeline_with_memory_fits_its_first_step_once(stack, tmp_path):
    memory = joblib.Memory(tmp_path / "cache", verbose=0)
    calls = tmp_path / "calls"
    for _ in range(2):
        make_pipeline(CountingReader(str(calls)), RowReader(), memory=memory).fit(stack)
    assert calls.read_text() == "fit "
    make_pipeline(CountingReader(str(calls)), RowReader(), memory=memory).fit(stack.with_ctf(stack.ctf[:]))
    assert calls.read_text() == "fit "
    turned = stack.with_poses(Poses(stack.poses.angle_rad, stack.poses.shift + 1.0))
    make_pipeline(CountingReader(str(calls)), RowReader(), memory=memory).fit(turned)
    assert calls.read_text() == "fit fit "


class CountingReader(RowReader):
    """Writes a word to a file at every fit."""

    def __init__(self, log="", offset=0, reference=None):
        super().__init__(offset, reference)
        self.log = log

    def fit(self, X, y=None):
        with open(self.log, "a") as file:
            file.write("fit ")
        return super().fit(X)


def test_a_stack_may_be_a_parameter_of_an_estimator(stack):
    copied = clone(RowReader(reference=stack))
    assert copied.reference is stack
    assert "ParticleStack" in repr(copied)
    assert copied.get_params()["reference"] is stack
