"""
While the microscope runs: classes from a stream of particles
=============================================================

``SMLClusterer.partial_fit`` learns from chunks. It keeps the features of the last 2,000 images and matches
them again with every chunk. Of older images it keeps only the sums of the E-step, which slowly lose weight.
At any time the model has classes, averages and a score for particles that it has not seen.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.metrics import fraction_within
from sklearn_cryoem.plotting import plot_class_averages

# %%
# We use aligned particles, in chunks as they would come from the microscope, and hold out 500 from which the
# model does not learn.
stack = aligned_to_truth(make_particles("ribosome", 2000, box=32, snr=0.1, random_state=0))
held_out, stream = stack[:500], stack[500:]
views = held_out.truth[["view_x", "view_y", "view_z"]].to_numpy()

# %%
# The model learns chunk by chunk. ``score`` is the mean log likelihood of the held-out particles.
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
# For comparison, a fit to all particles at once. It is still better than the stream.
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
# The classes after the last chunk. ``predict`` assigns new particles to them.
plot_class_averages(model.class_averages_, counts=np.bincount(model.predict(stream), minlength=36))
