"""On plain vectors SMLClusterer is a scikit-learn estimator like any other: all checks, no exceptions."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_cryoem import SMLClusterer


# The check of array API input skips itself unless SCIPY_ARRAY_API is set, and warns of it in some versions.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        SMLClusterer(),
        SMLClusterer((2, 2, 2), n_components=3, alpha=0.1, noise="white"),
        SMLClusterer(8, topology="ring"),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
