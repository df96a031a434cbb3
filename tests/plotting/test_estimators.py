"""Pictures of fitted estimators: the classification comes first, the particles second."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import MAPAligner, SMLClusterer, class_quality
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.plotting import plot_class_averages, plot_convergence, plot_manifold_atlas

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 60, box=16, snr=1.0, random_state=0)


@pytest.fixture(scope="module")
def model(stack):
    aligner = MAPAligner(2, n_batches=2, max_iter=1, random_state=0)
    return make_pipeline(aligner, SMLClusterer((2, 3), max_iter=3)).fit(stack)


def test_an_estimator_brings_sizes_nodes_and_topology(model, stack):
    clusterer = model[-1]
    gallery = plot_class_averages(model, stack).axes[0]
    assert gallery.get_title().startswith("60 particles in ")
    texts = {text.get_text() for text in gallery.texts}
    assert {str(size) for size in clusterer.class_sizes_ if size > 2} <= texts
    atlas = plot_manifold_atlas(clusterer).axes[0]
    assert atlas.get_title() == "2 × 3 classes on a 2-D manifold"
    of_particles = plot_manifold_atlas(model, stack).axes[0].images[0].get_array()
    aligned = model[0].transform(stack)
    known = plot_manifold_atlas(clusterer, latent_positions=clusterer.transform(aligned))
    np.testing.assert_array_equal(of_particles, known.axes[0].images[0].get_array())


def test_only_measured_resolutions_are_drawn(model, stack):
    def drawn(**measured):
        return {text.get_text() for text in plot_class_averages(model, stack, **measured).axes[0].texts}

    alone = [text for text in drawn() if text.endswith("Å")]
    assert len(alone) == 1  # the scale bar: class_resolution_ of the fit is another figure
    table = class_quality(model, stack)
    measured = table["resolution"][np.isfinite(table["resolution"]) & (table["size"] > 2)]
    assert len(measured)
    assert {f"{value:.3g} Å" for value in measured} <= drawn(quality=table)


@pytest.mark.parametrize("plot", [plot_class_averages, plot_convergence, plot_manifold_atlas])
def test_swapped_arguments_are_named(plot, model, stack):
    with pytest.raises(TypeError, match="classification first and the particles second"):
        plot(stack, model)
    with pytest.raises(TypeError, match=r"expected a ParticleStack\. Pass the particles second"):
        plot(model, model[-1].class_averages_)


def test_an_estimator_without_what_is_drawn_is_refused(model):
    with pytest.raises(TypeError, match="Pass a fitted MAPAligner"):
        plot_convergence(KMeans())
    with pytest.raises(TypeError, match=r"SMLClusterer has no class_averages_\. Pass a fitted MAPAligner"):
        plot_class_averages(SMLClusterer())
    with pytest.raises(TypeError, match=r"MAPAligner has no map.*Pass a fitted SMLClusterer"):
        plot_manifold_atlas(model[0])
