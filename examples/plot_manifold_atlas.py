"""
The manifold atlas: on a plane, and round a ring
================================================

Every class of an ``SMLClusterer`` has a place in a latent space, and neighbours there look alike. Class
averages that are drawn at their places are a map of the views. In this example the particle turns around
one axis, so the natural map is a ring: ``topology="ring"`` has no edge at which classes pile up.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.plotting import plot_convergence, plot_manifold_atlas

# %%
# From particles in all views we take those that are seen at right angles to one axis. Their views lie on a
# great circle.
stack = aligned_to_truth(make_particles("ribosome", 5000, box=32, snr=0.2, random_state=1))
stack = stack[np.abs(stack.truth["view_z"]) < 0.12]
turn = np.arctan2(stack.truth["view_y"], stack.truth["view_x"]).to_numpy()
print(stack)

# %%
# First a plane. The particles lie along a bent line in it, as the density behind the averages shows.
plane = SMLClusterer((6, 6), max_iter=60, tol=0.05).fit(stack)
plot_manifold_atlas(plane, stack)

# %%
# Now a ring of 24 nodes. Its first and last nodes are neighbours.
ring = SMLClusterer(24, topology="ring", max_iter=60, tol=0.05).fit(stack)
plot_manifold_atlas(ring, stack)

# %%
# We plot the coordinate on the ring against the true turn of each particle, which the model does not know.
# The two agree, except for an arbitrary starting point and direction.
figure, axes = plt.subplots(layout="constrained")
axes.scatter(np.degrees(turn), ring.transform(stack)[:, 0], s=8)
axes.set(xlabel="true turn (degrees)", ylabel="latent coordinate on the ring", ylim=(-1, 1))

# %%
# The convergence of the fit: how much classes explain of particles that they have not seen, then of all.
plot_convergence(ring, stack)
