"""What estimators ask about data that can be fitted, but hardly as it is meant."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import DeepClusterer, SMLClusterer
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import make_particles


def warnings_of(fit):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit()
    return [(warning.category, str(warning.message), warning.filename) for warning in seen]


# ---------------------------------------------------------------- vectors
@pytest.mark.parametrize(
    ("X", "n_distinct"),
    [
        (np.full((30, 4), 2.5), "1 distinct vector among 30"),
        (np.repeat(np.eye(3), 20, axis=0), "3 distinct vectors among 60"),
        (np.where(np.arange(80).reshape(20, 4) % 2, 0.0, -0.0), "1 distinct vector among 20"),
    ],
)
def test_fewer_distinct_vectors_than_classes_are_told(X, n_distinct):
    (told,) = [text for kind, text, _ in warnings_of(lambda: SMLClusterer((2, 3), max_iter=5).fit(X))
               if "distinct" in text and issubclass(kind, ConvergenceWarning)]  # fmt: skip
    assert told.startswith(f"SMLClusterer found {n_distinct}, fewer than its 6 classes (n_clusters=(2, 3))")


def test_as_many_distinct_vectors_as_classes_are_no_question(rng):
    varied = rng.normal(size=(40, 5))
    varied[:, 2] = 7.0  # a constant column among others does no harm
    for X in (varied, np.repeat(varied[:6], 5, axis=0), varied[:5]):
        told = warnings_of(lambda X=X: SMLClusterer((2, 3), max_iter=5).fit(X))
        assert not [text for _, text, _ in told if "distinct" in text]


# ---------------------------------------------------------------- a mask that leaves no background
@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 120, box=24, pixel_size=15.0, snr=1.0, random_state=0)


def tight(fit):
    return [(text, name) for kind, text, name in warnings_of(fit)
            if issubclass(kind, ParticleDataWarning) and text.endswith("[box-too-tight]")]  # fmt: skip


def test_a_mask_of_the_whole_box_is_questioned_once_where_fit_was_called(stack):
    for fit in (SMLClusterer((2, 2), max_iter=4, mask_diameter=355).fit,
                SMLClusterer((2, 2), max_iter=4, mask_diameter=355).partial_fit):  # fmt: skip
        ((text, name),) = tight(lambda fit=fit: fit(stack))
        assert text.startswith("SMLClusterer: mask_diameter 355 A takes 99% of the box") and name == __file__
    assert not tight(lambda: SMLClusterer((2, 2), max_iter=4, mask_diameter=300).fit(stack))
    assert not tight(lambda: SMLClusterer((2, 2), max_iter=4).fit(stack))


@pytest.mark.parametrize(("first", "second"), [(355, 355), (355, 300), (300, 355)])
def test_sub_classes_do_not_ask_again(stack, first, second):
    deep = DeepClusterer(
        SMLClusterer((2, 2), max_iter=4, mask_diameter=first),
        SMLClusterer(max_iter=4, mask_diameter=second),
        images_per_subclass=5,
        random_state=0,
    )
    assert len(tight(lambda: deep.fit(stack))) == 1
    assert sum(clusterer is not None for clusterer in deep.clusterers_) > 1
