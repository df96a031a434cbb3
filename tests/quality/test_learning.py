"""Selections that are learned: a made-up taste is found again, in a file too."""

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.quality import LearnedSelection, learn_selection


def run_of(rng, n=40):
    """Measures of classes, and those kept by somebody who wants coherence, and nothing at the edge."""
    table = pd.DataFrame({
        "class": np.arange(1, n + 1), "size": rng.integers(0, 50, n), "coherence": rng.uniform(0.3, 1, n),
        "edge": rng.exponential(0.2, n), "resolution": np.where(rng.random(n) < 0.1, np.inf, 20.0),
        "stability": np.nan,
    })  # fmt: skip
    return table, table["class"][(table["coherence"] > 0.6) & (table["edge"] < 0.3)].to_numpy()


def test_a_taste_is_found_again_in_another_run(tmp_path):
    rng = np.random.default_rng(0)
    runs = [run_of(rng) for _ in range(4)]
    learned = learn_selection([table for table, _ in runs[:3]], [kept for _, kept in runs[:3]])
    assert learned.n_runs == 3 and 0.8 < learned.accuracy <= 1.0
    assert (
        learned.weight[learned.columns.index("coherence")] > 0 > learned.weight[learned.columns.index("edge")]
    )
    learned.save(tmp_path / "mine.json")
    table, kept = runs[3]
    probability = LearnedSelection.load(tmp_path / "mine.json").probability(table)
    np.testing.assert_array_equal(probability, learned.probability(table))
    there = table["size"] > 0
    assert ((probability >= 0.5) == table["class"].isin(kept))[there].mean() > 0.8
    assert (probability[~there] == 0).all()
    alone = learn_selection([runs[0][0]], [runs[0][1]])
    assert alone.n_runs == 1 and alone.accuracy > 0.7


def test_what_cannot_be_learned_is_refused(tmp_path):
    table, _ = run_of(np.random.default_rng(0))
    with pytest.raises(ValueError, match="Give selections of more runs"):
        learn_selection([table], [[1, 2]])
    whole, other = run_of(np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"without run 2, all of the .* leave out runs that were kept"):
        learn_selection([table.assign(size=9), whole.assign(size=9)], [table["class"], other])
    (tmp_path / "x.json").write_text('{"classes": [1]}')
    with pytest.raises(ParticleDataError, match="Make it with sklearn-cryoem learn-selection"):
        LearnedSelection.load(tmp_path / "x.json")
