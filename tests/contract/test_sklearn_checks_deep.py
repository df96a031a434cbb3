"""On plain vectors DeepClusterer is a scikit-learn estimator like any other: all checks, no exceptions.

The first classification has three classes: one check wants three blobs back, and knows no other way than a
parameter `n_clusters` to say so.
"""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_cryoem import DeepClusterer, SMLClusterer


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        DeepClusterer(SMLClusterer(3, n_components=1), SMLClusterer(max_iter=300)),
        DeepClusterer(SMLClusterer(3, n_components=1), images_per_subclass=7, min_class_size=100),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
