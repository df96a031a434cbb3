"""ProjectionClusterer: volumes, views and classes of particles without poses."""

import numpy as np
import pytest

from sklearn_cryoem import ParticleStack, ProjectionClusterer, SMLClusterer, load_model, save_model
from sklearn_cryoem.datasets import make_particles, make_rings
from sklearn_cryoem.estimators import initial_model, model_files, projection_clusterer
from sklearn_cryoem.metrics import fraction_within
from sklearn_cryoem.physics.polar import polar_grid
from sklearn_cryoem.projections.views import cell_frames, view_angles, view_rotations
from sklearn_cryoem.projections.volumes import slices

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
OPTIONS = {"max_shift": 10.0, "max_resolution": 40.0, "n_batches": 30, "random_state": 0}


@pytest.fixture(scope="module")
def stack():
    """Views of a ring of four subunits from everywhere."""
    return make_particles(
        make_rings(4, 24, 10.0), 300, box=24, pixel_size=10.0, snr=1.0, max_shift=10.0, defocus=None,
        random_state=0,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_passes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection_clusterer, "START_PASSES", (4,) * 6)
        yield


@pytest.fixture(scope="module")
def fitted(stack):
    return ProjectionClusterer(40, **OPTIONS).fit(stack)


def four_fold(volume):
    """Largest correlation of a projection with itself turned by a quarter, over all views."""
    grid = polar_grid(24, 5, 11)
    half = grid.n_angles // 2
    seen = slices(volume.astype(np.float64), view_rotations(view_angles(300, "C1")), grid)
    whole = np.concatenate([seen, seen.conj()], axis=2) * np.sqrt(grid.radius)[:, None]
    turned = np.roll(whole, half // 2, axis=2) if half % 2 == 0 else None
    power = (np.abs(whole) ** 2).sum(axis=(1, 2))
    return ((whole.conj() * turned).sum(axis=(1, 2)).real / power).max()


def test_a_ring_of_four_comes_out_with_four_subunits(stack, fitted):
    assert four_fold(fitted.volumes_[0]) > 0.9


def test_particles_of_a_class_are_seen_from_one_side(stack, fitted):
    views = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    axis = np.abs(views[:, 2])  # four sides are the same: what can be compared is the height
    within = [np.ptp(axis[fitted.labels_ == label]) for label in np.unique(fitted.labels_)]
    assert np.median(within) < 0.4
    assert fraction_within(fitted.labels_, views, 180.0) == 1.0
    assert fitted.direction_counts_.sum() == len(stack)
    assert fitted.poses_.view_rad.shape == (300, 2)
    assert fitted.class_averages_.shape == (40, 24, 24)
    assert 20.0 < fitted.volume_resolution_[0] < 100.0


def test_a_map_of_classes_begins_with_its_poses(stack, fitted):
    axis = np.abs(stack.truth["view_z"].to_numpy())
    labels = SMLClusterer(16, random_state=0).fit_predict(stack.with_poses(fitted.poses_))
    within = sum(np.var(axis[labels == label]) * np.sum(labels == label) for label in np.unique(labels))
    assert within / len(axis) < 0.4 * np.var(axis)


def test_turning_the_particles_turns_their_poses_and_no_view(stack, fitted):
    # a quarter, x towards y; the images have no CTF that would turn with them
    images = np.roll(stack.read()[:, ::-1, :], 1, axis=1).transpose(0, 2, 1)
    turned = ParticleStack(np.ascontiguousarray(images), pixel_size=stack.pixel_size)
    found = fitted.transform(turned).poses
    np.testing.assert_allclose(found.view_rad, fitted.poses_.view_rad)
    change = np.exp(1j * (found.angle_rad - fitted.poses_.angle_rad + np.pi / 2))
    assert np.mean(change.real > np.cos(np.radians(1.0))) > 0.95


def test_any_number_of_workers_and_a_file_give_the_same_bits(stack, tmp_path):
    few = {**OPTIONS, "max_resolution": 60.0, "n_batches": 3, "max_iter": 1}
    one = ProjectionClusterer(10, n_volumes=2, flat=True, n_init=2, **few).fit(stack[:120])
    two = ProjectionClusterer(10, n_volumes=2, flat=True, n_init=2, n_jobs=2, **few).fit(stack[:120])
    np.testing.assert_array_equal(one.volumes_, two.volumes_)
    np.testing.assert_array_equal(one.poses_.angle_rad, two.poses_.angle_rad)
    assert one.start_scores_.shape == (2,)
    assert one.class_averages_.shape == (21, 24, 24)
    save_model(one, tmp_path / "model.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "model.npz").predict(stack[:120]), one.labels_)


def test_a_fit_that_was_killed_goes_on_and_ends_with_the_same_bits(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    options = {**OPTIONS, "max_resolution": 60.0, "n_batches": 4, "max_iter": 2, "n_init": 2, "tol": 0.0}
    whole = ProjectionClusterer(10, **options).fit(stack[:120])

    class Killed(BaseException):
        pass

    keep, kept = model_files.CheckpointFile.keep, []

    def dies(self, state, *, now=False):
        keep(self, state, now=now)
        kept.append(state)
        if len(kept) in (3, 9, 16):
            raise Killed

    monkeypatch.setattr(model_files.CheckpointFile, "keep", dies)
    model = ProjectionClusterer(10, checkpoint=tmp_path, **options)
    for _ in range(3):
        with pytest.raises(Killed):
            model.fit(stack[:120])
    np.testing.assert_array_equal(model.fit(stack[:120]).volumes_, whole.volumes_)
    assert not list(tmp_path.iterdir())


def test_more_cells_than_images_are_refused(stack):
    with pytest.raises(ValueError, match="Ask for fewer n_clusters"):
        ProjectionClusterer(10, n_volumes=2).fit(stack[:19])


@pytest.mark.parametrize("n_clusters", [211, 253])  # twice as many views leave a cell empty
def test_every_cell_has_views(stack, n_clusters):
    model = ProjectionClusterer(n_clusters, max_resolution=100.0)
    settings = model._settings_for(stack)
    views, cells = view_angles(settings.n_views, "C1"), view_angles(n_clusters, "C1")
    assert 2 * n_clusters < settings.n_views < 2 * n_clusters + 20
    assert len(np.unique(cell_frames(views, cells, "C1").label)) == n_clusters


def test_a_first_model_leaves_out_averages_without_particles_or_signal(stack):
    images = stack[:14].read()
    sizes, resolutions = np.arange(2, 16), np.full(14, 30.0)
    sizes[3], resolutions[5], resolutions[9] = 0, np.inf, np.nan
    few = {
        "n_init": 1,
        "n_batches": 2,
        "max_iter": 1,
        "n_clusters": 5,
        "random_state": 0,
        "max_resolution": 60.0,
    }
    model = initial_model(images, 10.0, sizes=sizes, resolutions=resolutions, **few)
    kept = np.delete(np.arange(14), [3, 5, 9])
    alone = initial_model(images[kept], 10.0, sizes=sizes[kept], resolutions=resolutions[kept], **few)
    np.testing.assert_array_equal(model.volumes_, alone.volumes_)
    assert len(model.labels_) == 11 and np.ptp(model.volumes_) > 0
    with pytest.raises(ValueError, match="Give better classes"):
        initial_model(images, 10.0, resolutions=np.full(14, np.inf))


def test_a_warm_start_with_other_views_names_what_they_depend_on(stack):
    options = {**OPTIONS, "max_resolution": 60.0, "n_batches": 2, "max_iter": 1, "warm_start": True}
    model = ProjectionClusterer(10, **options).fit(stack[:60])
    with pytest.raises(ValueError, match=r"mask_diameter and max_resolution back .*set warm_start=False"):
        model.set_params(max_resolution=50.0).fit(stack[:60])
