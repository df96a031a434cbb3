"""
From particles to a map of their views
======================================

This example simulates particles, aligns them without a reference, sorts them on a two-dimensional manifold,
and measures how similar the views within a class are, compared with chance.
"""

import numpy as np

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.metrics import fraction_within
from sklearn_cryoem.plotting import plot_class_averages, plot_manifold_atlas

# %%
# Particles of a ribosome-like phantom: all view directions, CTF with astigmatism, noise above the signal.
# The truth is in ``stack.truth`` and is not used before the end.
stack = make_particles("ribosome", 800, box=32, snr=0.2, max_shift=20.0, random_state=0)
print(stack)

# %%
# The aligner finds an in-plane angle and a shift for each particle, and returns the same stack with poses.
aligned = MAPAligner(8, n_batches=60, random_state=0).fit_transform(stack)
print(aligned.poses)

# %%
# The clusterer sorts the aligned particles on a 6 x 6 grid, where neighbours look alike.
clusterer = SMLClusterer((6, 6), random_state=0)
labels = clusterer.fit_predict(aligned)
counts = np.bincount(labels, minlength=36)
plot_class_averages(clusterer.class_averages_, counts=counts, pixel_size=stack.pixel_size)

# %%
plot_manifold_atlas(clusterer, aligned)

# %%
# How good is it? The fraction of same-class pairs whose views are within 20 degrees of each other.
views = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
print(f"same class:  {fraction_within(labels, views, 20):.3f}")
print(f"any pair:    {fraction_within(np.zeros(len(views), int), views, 20):.3f}")
