"""
Better averages align better: realignment
=========================================

The first poses come from an alignment with few classes. The many classes of a manifold are purer, so they
are better references. ``RealigningClusterer`` therefore alternates between fits of an ``SMLClusterer`` and
local searches of the poses.
"""

import numpy as np

from sklearn_cryoem import Poses, RealigningClusterer, SMLClusterer, class_quality
from sklearn_cryoem.datasets import make_particles, true_poses
from sklearn_cryoem.metrics import pose_errors
from sklearn_cryoem.plotting import plot_class_averages

# %%
# We simulate particles in four views, with poses that are wrong by a few degrees and about a pixel.
stack = make_particles("ribosome", 600, box=32, snr=0.5, n_views=4, max_shift=20.0, random_state=0)
rng = np.random.default_rng(0)
truth = true_poses(stack)
rough = stack.with_poses(
    Poses(truth.angle_rad + rng.normal(0, 0.08, 600), truth.shift + rng.normal(0, stack.pixel_size, (600, 2)))
)

# %%
# We run two rounds. Particles of even rows are compared with averages of odd rows, and the other way round:
# compared with an average that contains its own noise, a particle would not move.
model = RealigningClusterer(SMLClusterer(9, max_iter=60, tol=0.05), n_rounds=2).fit(rough)
for number, (angle, shift) in enumerate(zip(model.angle_change_, model.shift_change_, strict=True), start=1):
    print(f"round {number}: poses moved by {np.degrees(angle):.2f} degrees and {shift:.2f} A (medians)")

# %%
# The errors of the poses before and after, in the frame of each class.
for name, poses in (("before", rough.poses), ("after", model.poses_)):
    errors = pose_errors(poses, stack.truth, model.labels_)
    print(
        f"{name:6s} {np.degrees(errors.median_angle_rad):.2f} degrees, {errors.median_shift:.2f} A (medians)"
    )

# %%
# Class averages with the poses before and after, with the resolutions that ``class_quality`` measures. These
# are optimistic, because the halves share their poses, and they end at 24 A, the finest detail of these
# images. Use them for comparison only.
before = SMLClusterer(9, max_iter=60, tol=0.05).fit(rough)
plot_class_averages(before, rough, quality=class_quality(before, rough), title="before")

# %%
plot_class_averages(model, stack, quality=class_quality(model, stack), title="after")
