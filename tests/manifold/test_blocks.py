import numpy as np

from sklearn_cryoem.manifold.blocks import (
    BLOCK_SIZE,
    MAX_START_SAMPLES,
    ArrayBlocks,
    FeatureLayout,
    shards,
    start_blocks,
)


def joined(blocks, n_shells):
    parts = [blocks.load(index, n_shells) for index in range(len(blocks))]
    norm = None if parts[0].norm is None else np.concatenate([part.norm for part in parts])
    return np.concatenate([part.data for part in parts]), norm, np.concatenate([part.power for part in parts])


def test_blocks_hold_every_row_once_with_its_products(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng)
    layout = blocks.layout
    data, norm, power = joined(blocks, layout.n_shells)
    np.testing.assert_allclose(data, ctf * y)
    if norm is not None:
        np.testing.assert_allclose(norm[:, layout.norm_index], ctf**2)
    for shell in range(layout.n_shells):
        np.testing.assert_allclose(power[:, shell], (y[:, layout.shell == shell] ** 2).sum(axis=1))
    assert sum(len(blocks.load(i, 1)) for i in range(len(blocks))) == blocks.n_samples == len(y)


def test_fewer_shells_are_a_prefix_of_all_of_them(make_blocks, rng):
    blocks, *_ = make_blocks(rng)
    whole = blocks.load(1, blocks.layout.n_shells)
    for n_shells in range(1, blocks.layout.n_shells + 1):
        part, view = blocks.load(1, n_shells), whole.prefix(blocks.layout.truncate(n_shells))
        np.testing.assert_array_equal(part.data, view.data)
        np.testing.assert_array_equal(part.power, view.power)
        assert view.data.base is not None, "a prefix copies nothing"
        if part.norm is not None:
            np.testing.assert_array_equal(part.norm, view.norm)


def test_sums_over_norms_and_shells(kind, make_blocks, rng):
    layout = make_blocks(rng)[0].layout
    values = rng.standard_normal((3, layout.n_features))
    for index, sums in (
        (layout.norm_index, layout.sum_norms(values)),
        (layout.shell, layout.sum_shells(values)),
    ):
        expected = np.stack([values[:, index == i].sum(axis=1) for i in range(index[-1] + 1)], axis=1)
        np.testing.assert_allclose(sums, expected, atol=1e-12)
    assert layout.shell_sizes.sum() == layout.n_features


def test_an_offset_is_subtracted(rng):
    values = rng.standard_normal((10, 4)) + 100.0
    blocks = ArrayBlocks(values, offset=values.mean(axis=0), block_size=4)
    np.testing.assert_allclose(joined(blocks, 1)[0], values - values.mean(axis=0), atol=1e-12)


def test_shards_and_start_blocks_are_cut_by_the_data_alone(rng):
    for n_samples in (3, BLOCK_SIZE, 40 * BLOCK_SIZE + 1):
        blocks = ArrayBlocks(np.zeros((n_samples, 1), np.float32), layout=FeatureLayout.plain(1))
        flat = [index for shard in shards(blocks) for index in shard]
        assert flat == list(range(len(blocks)))
        chosen = start_blocks(blocks)
        n_rows = sum(len(blocks.load(index, 1)) for index in chosen)
        assert chosen == sorted(set(chosen)) and n_rows <= max(MAX_START_SAMPLES, BLOCK_SIZE)
    assert chosen[0] == 0 and chosen[-1] == len(blocks) - 1
