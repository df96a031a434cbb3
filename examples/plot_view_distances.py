"""
How similar are the views within a class?
==========================================

This is the central measure of Wu et al. 2017 (their figure 2): the angle between the true view directions,
for every pair of particles in one class. In good classes small angles are common. The example compares
statistical manifold learning with k-means on principal components and with a Gaussian mixture, on the same
particles in their true poses.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.metrics import effective_classes, fraction_within, view_distances

# %%
# We simulate particles of a ribosome-like phantom from all directions. Per pixel, the variance of the
# signal is a fiftieth of that of the noise. ``aligned_to_truth`` takes the place of a perfect alignment.
stack = aligned_to_truth(make_particles("ribosome", 4000, box=48, snr=0.02, random_state=0))
views = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
n_classes = 100

# %%
# Three methods make the same number of classes. ``EigenImages`` flips the phases of each particle where its
# CTF is negative, and returns its coordinates along the principal components of the set. Here 20 of them at
# 25 A suit k-means well; 50 at 15 A would halve its share of near views. ``SMLClusterer`` has its defaults.
coordinates = EigenImages(20, max_resolution=25.0).fit_transform(stack)
labels = {
    "SMLClusterer": SMLClusterer(n_classes).fit_predict(stack),
    "PCA + k-means": KMeans(n_classes, n_init=4, random_state=0).fit_predict(coordinates),
    "PCA + Gaussian mixture": GaussianMixture(
        n_classes, covariance_type="spherical", random_state=0
    ).fit_predict(coordinates),
}
for name, label in labels.items():
    print(
        f"{name:24s} within 10 degrees {fraction_within(label, views):6.1%}, "
        f"within 20 degrees {fraction_within(label, views, 20):6.1%}, "
        f"as many as {effective_classes(label).perplexity:.0f} equal classes"
    )
chance = np.zeros(len(stack), dtype=int)
print(f"{'by chance':24s} within 10 degrees {fraction_within(chance, views):6.1%}")

# %%
# The histogram of the angles between views (figure 2d to 2f of the paper). The further left it lies, the
# purer are the classes.
figure, axes = plt.subplots(layout="constrained")
bins = np.arange(0, 181, 4)
for name, label in labels.items():
    distances = view_distances(label, views)
    axes.hist(distances, bins, density=True, histtype="step", lw=2, label=name)
axes.plot(bins, np.sin(np.radians(bins)) / 2 * np.pi / 180, color="0.6", ls="--", label="by chance")
axes.set(xlabel="angle between views of a same-class pair (degrees)", ylabel="density", xlim=(0, 180))
axes.legend()

# %%
# The class sizes, largest first (figure 2g). Classes of equal size would give a horizontal line. A method
# that puts most particles into a few classes does not use the others.
figure, axes = plt.subplots(layout="constrained")
for name, label in labels.items():
    axes.plot(np.sort(np.bincount(label, minlength=n_classes))[::-1], lw=2, label=name)
axes.axhline(len(stack) / n_classes, color="0.6", ls="--", label="equal classes")
axes.set(xlabel="class, largest first", ylabel="particles")
axes.legend()
