"""
Deep clustering: classes inside classes
=======================================

Deep clustering first aligns and classifies the particles, as a 2-D classification does, and then fits a
manifold inside every class. Two structures that differ in a detail share the classes of the alignment,
because different views differ by more than the detail. Inside a class the views are nearly the same, so
there the detail separates the two structures.
"""

import numpy as np

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.plotting import plot_class_averages

# %%
# Regulatory particles of the proteasome, one in five still attached to a core particle, in forty views.
stack = make_particles(
    ["rp", "rp-cp"], 1200, weights=[0.8, 0.2], n_views=40, box=32, snr=0.3, max_shift=20.0, random_state=0
)
attached = stack.truth["structure"].to_numpy() == 1

# %%
# There are four first classes, and each gets one sub-class for every 25 of its particles.
deep = DeepClusterer(
    MAPAligner(4, n_batches=60, max_iter=6, random_state=0),
    SMLClusterer(max_iter=90, tol=0.05),
    images_per_subclass=25,
    random_state=0,
).fit(stack)
plot_class_averages(deep.first_.class_averages_, counts=np.bincount(deep.first_labels_))

# %%
# The tree says which flat classes are part of which first class.
for number, flat in enumerate(deep.children_):
    sizes = ", ".join(str(size) for size in deep.class_sizes_[flat])
    print(f"class {number + 1}: {len(flat)} sub-classes of {sizes} particles")

# %%
# These are the sub-classes of the largest class.
flat = deep.children_[np.bincount(deep.first_labels_).argmax()]
plot_class_averages(deep.class_averages_[flat], counts=deep.class_sizes_[flat], pixel_size=stack.pixel_size)


# %%
# How useful are the sub-classes? We count how many particles belong to the commoner structure of their class.
def purity(labels):
    right = sum(
        max(np.sum(attached[labels == one]), np.sum(~attached[labels == one])) for one in np.unique(labels)
    )
    return right / len(labels)


print(f"right by the commoner structure of each class:     {purity(deep.first_labels_):.3f}")
print(f"right by the commoner structure of each sub-class: {purity(deep.labels_):.3f}")
