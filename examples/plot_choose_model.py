"""
How stiff a manifold, and of what dimension?
============================================

This example searches over ``n_components`` and ``n_basis`` by the likelihood of held-out
particles. The particles are simulated, so the choice of the search can be compared with the truth.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.particles import Poses
from sklearn_cryoem.plotting import plot_manifold_atlas

# %%
# We simulate particles of a ribosome-like phantom in all view directions, and the same particles without
# noise and CTF, which is what a class should look like. They are neither turned nor shifted, so all poses
# are zero and no alignment is needed.
settings = {"n_samples": 1000, "box": 32, "in_plane": False, "random_state": 0}
stack = make_particles("ribosome", snr=0.1, **settings).with_poses(Poses.identity(1000))
clean = make_particles("ribosome", snr=None, defocus=None, **settings).read()


# %%
# We use two scores of particles that a model has not seen. ``SMLClusterer.score`` needs no truth. It is the
# mean log likelihood over all frequencies from ``min_resolution`` to ``max_resolution``, which must be the
# same for all candidates (and so must ``mask_diameter``). The second score uses the truth: it is the
# correlation between the template of a particle's class and the noise-free image of this particle.
def held_out(model, particles, truth=None):
    return model.score(particles)


def against_truth(model, particles, truth):
    templates = model.cluster_centers_[model.predict(particles)].reshape(len(particles), -1)
    wanted = truth.reshape(len(truth), -1)
    return np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(templates, wanted, strict=True)])


# %%
# ``refit`` says that the likelihood decides. The noise-free images go in as ``y``, which the model ignores.
search = GridSearchCV(
    SMLClusterer(36, max_resolution=30.0),
    {"n_components": [1, 2, 3], "n_basis": [4, 16]},
    scoring={"held_out": held_out, "truth": against_truth},
    refit="held_out",
    cv=KFold(2, shuffle=True, random_state=0),
)
search.fit(stack, clean)
likelihood, agreement = (search.cv_results_[f"mean_test_{name}"] for name in ("held_out", "truth"))

# %%
# These are the five best. A tenth of a nat per particle is a hundred nats for the thousand particles.
order = np.argsort(-likelihood)
print("nats above the worst   agreement with the truth   parameters")
for index in order[:5]:
    gain = likelihood[index] - likelihood.min()
    print(f"{gain:20.2f}   {agreement[index]:24.4f}   {search.cv_results_['params'][index]}")
print(f"correlation of the two scores: {np.corrcoef(likelihood, agreement)[0, 1]:.2f}")
print(f"the truth ranks the pick {1 + np.sum(agreement > agreement[order[0]])} of {len(order)}")

# %%
figure, axes = plt.subplots(layout="constrained")
for n_components in (1, 2, 3):
    own = search.cv_results_["param_n_components"] == n_components
    axes.scatter(likelihood[own], agreement[own], label=f"{n_components}-D")
axes.scatter(
    *(score[order[0]] for score in (likelihood, agreement)), s=150, fc="none", ec="k", label="picked"
)
axes.set(xlabel="held-out log likelihood, nats per particle", ylabel="agreement with noise-free images")
axes.legend()

# %%
# The chosen model is fitted again to all particles.
best = search.best_estimator_
plot_manifold_atlas(best, stack)
