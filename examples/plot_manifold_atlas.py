"""
The manifold atlas: on a plane, and round a ring
================================================

Every class of an ``SMLClusterer`` has a place in a latent space, and neighbours there look alike. Drawn
at their places the class averages are a map of what the particles do. Here they all turn round one axis,
so the map that fits is a ring: ``topology="ring"`` has no edge at which classes pile up.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.plotting import plot_convergence, plot_manifold_atlas

# %%
# Of particles seen from all sides, those seen at right angles to one axis: their views lie on a great circle.
stack = aligned_to_truth(make_particles("ribosome", 5000, box=32, snr=0.2, random_state=1))
stack = stack[np.abs(stack.truth["view_z"]) < 0.12]
turn = np.arctan2(stack.truth["view_y"], stack.truth["view_x"]).to_numpy()
print(stack)

# %%
# A plane first. Particles lie along a bent line in it: the density behind the averages is theirs.
plane = SMLClusterer((6, 6), max_iter=60, tol=0.05).fit(stack)
plot_manifold_atlas(
    plane.class_averages_,
    plane.latent_nodes_,
    latent_positions=plane.transform(stack),
    counts=plane.class_sizes_,
).figure

# %%
# Now a ring of 24 nodes. The first and the last are neighbours.
ring = SMLClusterer(24, topology="ring", max_iter=60, tol=0.05).fit(stack)
plot_manifold_atlas(
    ring.class_averages_,
    ring.latent_nodes_,
    topology="ring",
    latent_positions=ring.transform(stack),
    counts=ring.class_sizes_,
).figure

# %%
# The coordinate on the ring against the true turn of each particle, which no one told the model: one goes
# round as the other does, from some starting point and in either sense.
figure, axes = plt.subplots(layout="constrained")
axes.scatter(np.degrees(turn), ring.transform(stack)[:, 0], s=8)
axes.set(xlabel="true turn (degrees)", ylabel="latent coordinate on the ring", ylim=(-1, 1))

# %%
# The fit. Within a stage, which is one resolution limit, the objective may only rise.
plot_convergence(ring.log_posterior_, resolution=ring.resolution_, stage=ring.stage_).figure
