"""The adaptive search against the exhaustive one, which is its slow twin."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment import adaptive, prepared
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch, surviving
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.prepared import PreparedSearch


@pytest.fixture
def setting(rng, make_particles, make_settings, make_model, blob_image):
    def build(n_images=60, *, noise=1.0, **options):
        particles = make_particles(rng, n_images, noise=noise, kinds=(3, 4, 5))
        references = np.stack([blob_image(kind) for kind in (3, 4, 5)])
        # references that the images were not made of: mirrored ones and mixtures
        mixed = 0.6 * references + 0.4 * np.roll(references, 1, axis=0)
        model = make_model(np.concatenate([references, references[:, ::-1], mixed]), noise=noise**2)
        settings = make_settings(k_start=4.0, max_shift_px=4.0, **options)
        return particles, particles.source(), model, settings.space(32, 13.0)

    return build


def exhaustive(space):
    return replace(space, coarse=None)


def posteriors(source, rows, model, space):
    return PreparedSearch.of(source, model, space).posteriors(source.cache, rows, source.known.shift_px[rows])


def joined(parts):
    return Posterior.concatenate([posterior for _, posterior in parts])


@pytest.mark.parametrize("noise", [0.2, 0.3, 0.5])
def test_it_finds_what_the_exhaustive_search_finds(setting, noise):
    _, source, model, space = setting(300, noise=noise)
    assert space.coarse is not None
    rows = np.arange(300)
    found = joined(posteriors(source, rows, model, space))
    naive = joined(posteriors(source, rows, model, exhaustive(space)))
    same = (found.best_row == naive.best_row) & (found.best_angle == naive.best_angle)
    assert same.mean() >= 0.99, f"{(~same).sum()} of 300 images have another class or pose"
    lost = naive.log_evidence - found.log_evidence
    assert -1e-3 < lost.min() and lost.mean() < 0.1, f"lost {lost.mean():.3g} nats an image"


def test_its_sums_are_those_of_the_exhaustive_search(setting):
    _, source, model, space = setting(100, noise=0.5)
    found, naive = (source.run_pass(np.arange(100), model, s) for s in (space, exhaustive(space)))
    assert np.mean(found.label == naive.label) >= 0.99
    for name in ("numerator", "denominator", "mass"):
        a, b = getattr(found.statistics, name), getattr(naive.statistics, name)
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b), name


def test_classes_that_no_image_wants_are_left_out_of_the_fine_search(setting, monkeypatch):
    _, source, model, space = setting(60, noise=0.3)
    searched = []
    search = AdaptiveSearch._search

    def counted(self, images, chosen, *rest):
        searched.append(len(chosen))
        return search(self, images, chosen, *rest)

    monkeypatch.setattr(AdaptiveSearch, "_search", counted)
    list(posteriors(source, np.arange(60), model, space))
    assert 3 * 60 <= sum(searched) < 0.6 * 9 * 60


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (prepared, "IMAGES_PER_BLOCK", 7),
        (prepared, "IMAGES_PER_SEARCH", 20),
        (adaptive, "COLUMNS_PER_PRODUCT", 1),
        (prepared, "BANK_BYTES", 1.0),
    ],
)
def test_cutting_the_work_differently_changes_nothing(setting, monkeypatch, module, name, value):
    _, source, model, space = setting(50)
    rows = np.arange(50)
    whole = joined(posteriors(source, rows, model, space))
    monkeypatch.setattr(module, name, value)
    parts = joined(posteriors(source, rows, model, space))
    np.testing.assert_allclose(parts.log_evidence, whole.log_evidence, rtol=1e-4)
    np.testing.assert_array_equal(parts.best_row, whole.best_row)
    assert len(parts.weight) == pytest.approx(len(whole.weight), rel=0.01)


def test_references_that_are_kept_or_made_again_give_the_same_bits(setting):
    _, source, model, space = setting(50, noise=0.3)
    found = []
    for kept, n_kept in ((0.0, 0), (2.5 * space.shifted_bytes, 2), (1e9, 9)):
        work = replace(PreparedSearch.of(source, model, space), bank_bytes=0.0, kept_bytes=kept)
        found.append(joined(work.posteriors(source.cache, np.arange(50), source.known.shift_px)))
        assert len(work.bank.orders) == n_kept
    for other in found[1:]:
        np.testing.assert_array_equal(other.log_evidence, found[0].log_evidence)
        np.testing.assert_array_equal(other.weight, found[0].weight)


def test_two_workers_give_the_same_bits_as_one(setting, by_one_and_two):
    particles, _, model, space = setting(250)
    one, two = by_one_and_two(particles.source, lambda s: s.run_pass(np.arange(250), model, space))
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    for field in fields(Statistics):
        np.testing.assert_array_equal(
            getattr(one.statistics, field.name), getattr(two.statistics, field.name)
        )


def test_blocks_come_in_the_order_of_the_rows_with_their_own_cells(setting, monkeypatch):
    _, source, model, space = setting(150)
    rows = np.arange(150)[::-1].copy()
    monkeypatch.setattr(prepared, "IMAGES_PER_SEARCH", 60)
    shards = list(posteriors(source, rows, model, space))
    assert [len(features) for features, _ in shards] == [50, 50, 50]
    power = np.concatenate([features.power for features, _ in shards])
    np.testing.assert_allclose(power, source(rows, space.n_rings, space.n_orders).power, rtol=1e-5)
    for features, posterior in shards:
        total = np.bincount(posterior.image, posterior.weight, len(features))
        np.testing.assert_allclose(total, 1.0, atol=1e-5)
        best = np.zeros(len(features))
        np.maximum.at(best, posterior.image, posterior.weight)
        at = posterior.weight == best[posterior.image]
        assert set(zip(posterior.image, posterior.row, strict=True)) >= set(enumerate(posterior.best_row))
        assert at.sum() >= len(features)


def test_where_most_classes_survive_the_search_is_exhaustive(setting, monkeypatch):
    _, source, model, space = setting(60, noise=0.5)
    model = replace(model, noise=1e6 * model.noise)  # nothing tells the classes apart
    monkeypatch.setattr(prepared, "IMAGES_PER_SEARCH", 20)
    monkeypatch.setattr(prepared, "IMAGES_PER_BLOCK", 10)
    found, naive = (joined(posteriors(source, np.arange(60), model, s)) for s in (space, exhaustive(space)))
    for field in fields(Posterior):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(naive, field.name))


def test_survivors_hold_the_fraction_and_a_margin():
    log = np.log(np.array([[0.6, 0.3, 0.06, 0.03, 0.007, 0.003], [1e-9, 1.0, 1e-9, 2e-9, 1e-9, 1e-9]]))
    kept = surviving(log.astype(np.float32), 0.89)
    # the first two hold 0.9; e^-3 of the second is 0.015, and three are always kept
    np.testing.assert_array_equal(kept[0], [True, True, True, True, False, False])
    assert kept[1, 1] and kept[1, 3] and kept[1].sum() >= 3
    np.testing.assert_array_equal(surviving(log, 1.0)[0], True)
    np.testing.assert_array_equal(surviving(log[:, :2], 0.5), True)


def test_where_the_coarse_search_is_not_much_smaller_there_is_none(make_settings):
    adaptive_settings = make_settings(k_start=6.0, max_shift_px=4.0)
    assert adaptive_settings.space(32, 6.0).coarse is None
    coarse = adaptive_settings.space(32, 13.0).coarse
    assert coarse.coarse is None and coarse.n_rings < 13 and coarse.n_shifts < 49
    assert 4 * coarse.work <= adaptive_settings.space(32, 13.0).work
