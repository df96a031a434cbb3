"""What a type checker sees of the package: mypy reads this file as a user's, and nobody runs it."""

from typing import Any, assert_type

from matplotlib.figure import Figure
from numpy.typing import NDArray

from sklearn_cryoem import (
    DeepClusterer,
    MAPAligner,
    ParticleStack,
    RealigningClusterer,
    SMLClusterer,
    read_particles,
    save_model,
)
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.plotting import plot_class_averages, plot_convergence, plot_manifold_atlas
from sklearn_cryoem.report import Report, report

stack = assert_type(read_particles("particles.star"), ParticleStack)
usable, problems = read_particles("particles.star", permissive=True)
assert_type(usable, ParticleStack)
aligner = MAPAligner(50, max_shift=20.0, checkpoint="state", random_state=0)
aligned = assert_type(aligner.transform(stack), ParticleStack)
clusterer = SMLClusterer((10, 10), n_basis="auto", alpha=1.0)
assert_type(clusterer.predict_proba(aligned), NDArray[Any])
assert_type(clusterer.score(aligned), float)
assert_type(clusterer.sample(3, random_state=0), tuple[NDArray[Any], NDArray[Any]])
assert_type(DeepClusterer(aligner, clusterer).fit(stack), DeepClusterer)
assert_type(DeepClusterer().align(stack), ParticleStack)
assert_type(RealigningClusterer(clusterer, n_rounds=2).predict(aligned), NDArray[Any])
assert_type(EigenImages(8).fit(aligned).transform(aligned), NDArray[Any])
assert_type(plot_class_averages(stack.read(), counts=[1, 2]), Figure)
assert_type(plot_manifold_atlas(stack.read(), latent_nodes=[[0.0, 1.0]]), Figure)
assert_type(plot_convergence(aligner), Figure)
assert_type(report(clusterer, stack), Report)
save_model(clusterer, "model.npz", overwrite=True)
