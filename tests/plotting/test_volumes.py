"""The picture of a volume."""

import pytest

from sklearn_cryoem import ProjectionClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.plotting import plot_volume


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_picture_has_sections_views_averages_and_projections():
    stack = make_particles("ribosome", 60, box=24, snr=1.0, max_shift=10.0, random_state=0)
    model = ProjectionClusterer(
        12, max_shift=10.0, max_resolution=90.0, n_batches=2, max_iter=1, random_state=0
    ).fit(stack)
    figure = plot_volume(model)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["section along z", "section along y", "section along x", "particles by view"]
    assert sum(len(axes.images) for axes in figure.axes) == 3 + 2 * 8
    assert len(figure.axes[3].collections[0].get_offsets()) == 12
