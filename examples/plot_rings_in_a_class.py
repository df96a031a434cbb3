"""
Sub-populations hidden in one class
===================================

Ring-shaped complexes of 11 subunits, with a few of 10 and of 12 subunits, are seen from the side. An
alignment puts all of them into one class, whose average does not show the difference (section 3.2 of Wu et
al. 2017). A manifold inside the class finds the minorities.
"""

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.plotting import plot_class_averages

# %%
# Side views of three kinds of rings: 70 % have 11 subunits, 15 % have 10, 15 % have 12.
stack = make_particles(
    ["ring-11", "ring-10", "ring-12"],
    5000,
    weights=[0.7, 0.15, 0.15],
    box=48,
    pixel_size=8.0,
    snr=0.1,
    random_state=0,
)
stack = aligned_to_truth(stack[np.abs(stack.truth["view_z"]) < 0.06])
kind = stack.truth["structure"].to_numpy()
print(stack)

# %%
# A class of a few hundred particles is too small for a manifold over thousands of Fourier coefficients, but
# large enough for one over a few coordinates along its eigen-images.
model = make_pipeline(EigenImages(8, max_resolution=35.0), SMLClusterer(36, max_iter=300, random_state=0))
labels = model.fit_predict(stack)

# %%
# The phase-flipped averages of the sub-classes, computed from the eigen-images.
eigen, manifold = model[0], model[1]
averages = eigen.inverse_transform(manifold.class_averages_)
plot_class_averages(averages, counts=manifold.class_sizes_, n_columns=9)

# %%
# How pure are they? Each sub-class is named after the kind of most of its particles.
names = np.array([np.bincount(kind[labels == label], minlength=3).argmax() for label in range(36)])
table = confusion_matrix(kind, names[labels])
for index, fold in enumerate((11, 10, 12)):
    recall, precision = table[index, index] / table[index].sum(), table[index, index] / table[:, index].sum()
    print(f"{fold}-fold rings: {table[index].sum():3d}, recall {recall:.2f}, precision {precision:.2f}")
