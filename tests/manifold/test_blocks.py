import threading
from functools import partial

import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import (
    BLOCK_SIZE,
    MAX_START_SAMPLES,
    ArrayBlocks,
    FeatureLayout,
    in_turn,
    shards,
    start_blocks,
)


def joined(blocks, n_shells):
    parts = [blocks.load(index, n_shells) for index in range(len(blocks))]
    norm = np.concatenate([part.norm for part in parts])
    return np.concatenate([part.data for part in parts]), norm, np.concatenate([part.power for part in parts])


def test_blocks_hold_every_row_once_with_its_products(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng)
    layout = blocks.layout
    data, norm, power = joined(blocks, layout.n_shells)
    np.testing.assert_allclose(data, ctf * y)
    np.testing.assert_allclose(norm[:, layout.norm_index], ctf**2 * np.ones_like(y))
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


@pytest.mark.parametrize(
    ("n_samples", "n_shards"), [(300, 1), (60_000, 16), (131_072, 32), (260_000, 48), (1_000_000, 64)]
)
def test_much_data_are_cut_into_more_tasks_of_nearly_one_size(n_samples, n_shards):
    blocks = ArrayBlocks(np.zeros((n_samples, 1), np.float32), layout=FeatureLayout.plain(1))
    sizes = [len(shard) for shard in shards(blocks)]
    assert len(sizes) == n_shards
    assert max(sizes) - min(sizes) <= 1


class SlowBlocks(ArrayBlocks):
    """Blocks that come from a disk, which tells what it has read."""

    def __init__(self, n_blocks, stalled=None, broken=None):
        super().__init__(np.random.default_rng(0).normal(size=(2 * n_blocks, 3)), block_size=2)
        self.was_read = [threading.Event() for _ in range(n_blocks)]
        self.stalled, self.broken = stalled, broken
        self.go_on = threading.Event()
        self.readers = set()

    def fetch(self, index, n_shells):
        self.readers.add(threading.get_ident())
        if index == self.stalled:
            self.go_on.wait(30)
        if index == self.broken:
            raise OSError("the disk is broken")
        self.was_read[index].set()
        return partial(self.load, index, n_shells)


def test_the_next_block_is_read_while_one_is_worked_on():
    blocks = SlowBlocks(6)
    for index, block in enumerate(in_turn(blocks, range(6), 1)):
        if index < 5:
            assert blocks.was_read[index + 1].wait(30)
        assert not any(later.is_set() for later in blocks.was_read[index + 2 :])  # and no other
        np.testing.assert_array_equal(block.data, blocks.load(index, 1).data)
    assert index == 5 and len(blocks.readers) == 1 and threading.get_ident() not in blocks.readers


def test_what_reading_raises_is_raised_when_it_is_the_blocks_turn():
    turns = in_turn(blocks := SlowBlocks(4, broken=2), range(1, 4), 1)
    np.testing.assert_array_equal(next(turns).data, blocks.load(1, 1).data)
    with pytest.raises(OSError, match="the disk is broken"):
        next(turns)


def test_nobody_waits_for_a_stalled_disk_after_leaving():
    turns = in_turn(blocks := SlowBlocks(3, stalled=1), range(3), 1)
    next(turns)
    turns.close()  # would wait for half a minute
    assert not blocks.was_read[1].is_set()
    blocks.go_on.set()


def test_blocks_in_memory_need_no_thread(make_blocks, rng, monkeypatch):
    blocks = make_blocks(rng)[0]
    monkeypatch.setattr("sklearn_cryoem.manifold.blocks.read_ahead", lambda *_: pytest.fail("a thread"))
    n_shells = blocks.layout.n_shells
    for index, block in enumerate(in_turn(blocks, range(len(blocks)), n_shells)):
        np.testing.assert_array_equal(block.data, blocks.load(index, n_shells).data)
    assert index == len(blocks) - 1
