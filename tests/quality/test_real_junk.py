"""Real particles of an automatic picker: what is blurred ranks last, whatever the start of the fit."""

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, read_particles
from sklearn_cryoem.quality import class_quality, suggest_classes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_junk_of_beta_galactosidase_ranks_last(shared_data):
    """Two fits that share nothing but the images drop the same particles, and these are the blurred ones.

    Nobody has labelled these particles. Seen by eye, the classes that a fit ranks last are blobs, clumps and
    empty fields. What can be tested is that the suggestion is a property of the particles, not of the fit.
    """
    stack = read_particles(shared_data / "betagal" / "particles_ctf_corrected.star")[::2].downsample(32)
    tables, kept = [], []
    for seed in (0, 1):
        fit = MAPAligner(12, mask_diameter=190, n_batches=20, max_iter=1, random_state=seed).fit(stack)
        tables.append(class_quality(fit, stack))
        # dim classes, above aligned noise but far below the others here, are divided anew by each fit
        clear = suggest_classes(tables[-1], min_significance=3.0)["keep"]
        assert tables[-1]["keep"][clear].all()
        kept.append(clear.to_numpy()[fit.labels_])
    share = np.mean(kept, axis=1)  # (2,)
    assert (share > 0.5).all() and (share < 0.95).all(), f"keeps {share}"
    agreement = (kept[0] == kept[1]).mean()
    chance = share.prod() + (1 - share).prod()
    assert agreement > chance + 0.35 * (1 - chance), (
        f"the fits agree on {agreement:.0%}, chance is {chance:.0%}"
    )
    for table in tables:
        ranked = table.sort_values("rank")
        best, worst = ranked.iloc[:3], ranked.iloc[-2:]
        assert worst["information"].median() < 0.5 * best["information"].min() and not worst["keep"].any()
        assert worst["resolution"].median() > best["resolution"].max()
