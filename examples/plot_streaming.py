"""
While the microscope runs: classes from a stream of particles
=============================================================

``SMLClusterer.partial_fit`` learns from chunks. The features of the last 2,000 images are held, and matched
again with every chunk; of older ones the sums of the expectation step are, and fade. At any time the
model has classes, averages and a score for particles it has not seen.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.metrics import fraction_within
from sklearn_cryoem.plotting import plot_class_averages

# %%
# Aligned particles, in chunks as they would come from the microscope, and 500 that the model never learns
# from.
stack = aligned_to_truth(make_particles("ribosome", 2000, box=32, snr=0.1, random_state=0))
held_out, stream = stack[:500], stack[500:]
views = held_out.truth[["view_x", "view_y", "view_z"]].to_numpy()

# %%
# Chunk after chunk. ``score`` is the mean log likelihood of particles that the model has not seen.
model = SMLClusterer(36, max_iter=60, tol=0.05)
history = []
for start in range(0, len(stream), 250):
    model.partial_fit(stream[start : start + 250])
    near = fraction_within(model.predict(held_out), views, 20)
    history.append((model.n_images_seen_, model.score(held_out), near))
    print(
        f"{history[-1][0]:5d} seen: score {history[-1][1]:.2f}, same-class pairs within 20 degrees {near:.1%}"
    )

# %%
# The same particles all at once, for comparison: a fit at the end still pays.
whole = SMLClusterer(36, max_iter=60, tol=0.05).fit(stream)
seen, score, near = np.transpose(history)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(seen, score, "o-", label="in chunks")
left.axhline(whole.score(held_out), color="0.6", ls="--", label="fit to all")
left.set(xlabel="particles seen", ylabel="held-out log likelihood, nats per particle")
left.legend()
right.plot(seen, near, "o-")
right.axhline(fraction_within(whole.predict(held_out), views, 20), color="0.6", ls="--")
right.set(xlabel="particles seen", ylabel="same-class pairs within 20 degrees")

# %%
# Classes after the last chunk. New particles are given to them by ``predict``.
plot_class_averages(model.class_averages_, counts=np.bincount(model.predict(stream), minlength=36)).figure
