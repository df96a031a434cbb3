"""Features kept in files: the same bits, never a damaged or foreign one, and room said and seen to before."""

import errno
import json
import os
import shutil
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest

from sklearn_cryoem import ParticleStack
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.manifold.blocks import in_turn
from sklearn_cryoem.manifold.noise import RowNoise
from sklearn_cryoem.particles import Poses, feature_files
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

BLOCK = 40


@pytest.fixture(scope="module")
def stack():
    return aligned_to_truth(make_particles("ribosome", 100, box=40, snr=0.1, astigmatism=800, random_state=0))


def blocks_of(stack, cache_bytes=0, k_max=None, **options):
    return FeatureBlocks(
        stack, half_plane(stack.box, k_max), block_size=BLOCK, cache_bytes=cache_bytes, **options
    )


def assert_same_bits(blocks, reference, n_shells=None):
    n_shells = reference.layout.n_shells if n_shells is None else n_shells
    for index, block in enumerate(in_turn(blocks, range(len(blocks)), n_shells)):
        expected = reference.load(index, n_shells)
        for name in ("data", "norm", "power", "log_noise"):
            mine, other = getattr(block, name), getattr(expected, name)
            assert (mine is None) == (other is None)
            if mine is not None:
                assert mine.dtype == other.dtype
                np.testing.assert_array_equal(mine, other)


def files_in(folder):
    return sorted(folder.rglob("*.features"))


@pytest.fixture
def kept(stack, tmp_path):
    """Blocks whose files are all there."""
    blocks = blocks_of(stack).kept_in(tmp_path)
    for index in range(len(blocks)):
        blocks.load(index, 3)
    return blocks


# ---------------------------------------------------------------- the same bits
@pytest.mark.parametrize("cut", ["everything", "no CTF", "no astigmatism", "no poses"])
@pytest.mark.parametrize("segment_columns", [60, 4000])
def test_files_hold_the_bits_that_memory_holds(stack, tmp_path, monkeypatch, cut, segment_columns):
    monkeypatch.setattr(feature_files, "SEGMENT_COLUMNS", segment_columns)
    if cut == "no CTF":
        stack = stack.with_ctf(None)
    elif cut == "no poses":
        stack = stack.with_poses(None)
    elif cut == "no astigmatism":
        stack = aligned_to_truth(
            make_particles("ribosome", 100, box=40, snr=0.1, astigmatism=0, random_state=0)
        )
    reference = blocks_of(stack, cache_bytes=2**30)
    first = blocks_of(stack).kept_in(tmp_path)
    for n_shells in (2, 19, 7):  # written by the first, though it asks for little
        assert_same_bits(first, reference, n_shells)
    again = blocks_of(stack).kept_in(tmp_path)
    for n_shells in (1, 7, 12, 19):
        assert_same_bits(again, reference, n_shells)
    for index, file in enumerate(files_in(tmp_path)):
        assert file.stat().st_size == again._files._sizes[index]


def test_features_that_are_kept_are_not_made_again(stack, kept, tmp_path, monkeypatch):
    again = blocks_of(stack).kept_in(tmp_path)
    monkeypatch.setattr(FeatureBlocks, "_prepare", lambda *_: pytest.fail("features were prepared"))
    assert_same_bits(again, kept, 5)


def test_memory_keeps_what_files_hold(stack, kept, tmp_path):
    reference = blocks_of(stack, cache_bytes=2**30)
    again = blocks_of(stack, cache_bytes=2**30).kept_in(tmp_path)
    assert_same_bits(again, reference, 4)
    shutil.rmtree(tmp_path / again._files.folder.name)
    assert_same_bits(again, reference)


def test_features_lie_undivided_by_their_noise(stack, tmp_path):
    rng = np.random.default_rng(0)
    noise = RowNoise(rng.uniform(0.5, 2.0, (3, 19)), rng.integers(0, 3, len(stack)))
    whole = blocks_of(stack, cache_bytes=2**30)
    assert_same_bits(blocks_of(stack).kept_in(tmp_path).whitened(noise), whole.whitened(noise), 6)
    assert_same_bits(blocks_of(stack).kept_in(tmp_path), whole, 6)  # the same files


def test_first_shells_are_one_short_piece_of_the_file(kept, monkeypatch):
    monkeypatch.setattr(feature_files, "SEGMENT_COLUMNS", 60)
    blocks = blocks_of(kept.stack).kept_in(kept._files.folder.parent)
    asked = blocks._files._segments
    few = [segment for segment in asked if segment[0][1].start < 6]
    size = BLOCK * sum(map(feature_files._row_bytes, few))
    assert few == asked[: len(few)] and size < 0.25 * blocks._files._sizes[0]


# ---------------------------------------------------------------- names
def test_another_stack_pose_ctf_mask_or_resolution_has_another_name(stack):
    moved = Poses(stack.poses.angle_rad + 1e-6, stack.poses.shift, stack.poses.mirrored)
    brighter = ParticleStack(
        1.001 * stack.read(), pixel_size=stack.pixel_size, ctf=stack.ctf, poses=stack.poses
    )
    others = [
        blocks_of(stack),
        blocks_of(stack[:90]),
        blocks_of(stack[::-1]),
        blocks_of(stack.with_poses(moved)),
        blocks_of(stack.with_ctf(stack.ctf[::-1])),
        blocks_of(brighter),
        blocks_of(stack.invert_contrast()),
        blocks_of(stack, k_max=12),
        blocks_of(stack, mask_diameter=0.5 * stack.box * stack.pixel_size),
    ]
    assert len({blocks._key() for blocks in others}) == len(others)
    assert blocks_of(stack)._key() == blocks_of(stack.with_metadata(a=np.arange(len(stack))))._key()


def test_a_stack_file_that_was_written_again_has_another_name(stack, tmp_path):
    from sklearn_cryoem import read_particles, write_particles

    path = tmp_path / "particles.star"
    write_particles(stack, path)
    before = blocks_of(read_particles(path))._key()
    assert blocks_of(read_particles(path))._key() == before
    images = read_particles(path).images
    stacks = [tmp_path / name for name in os.listdir(tmp_path) if name.endswith("mrcs")]
    assert stacks and len(images) == len(stack)
    for file in stacks:
        os.utime(file, ns=(0, 0))
    assert blocks_of(read_particles(path))._key() != before


def test_a_new_version_makes_its_own(stack, monkeypatch):
    before = blocks_of(stack)._key()
    monkeypatch.setattr("sklearn_cryoem.particles.features.__version__", "99")
    assert blocks_of(stack)._key() != before


# ---------------------------------------------------------------- damage
def _cut(path):
    os.truncate(path, path.stat().st_size - 1)


def _flip(path):
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def _blank(path):
    path.write_bytes(bytes(path.stat().st_size))


def _swap(path):
    shutil.copy(path.with_name("000000.features"), path)  # whole and true, but of other rows


@pytest.mark.parametrize("damage", [_cut, _flip, _blank, _swap, os.remove])
def test_a_damaged_file_is_made_again(stack, kept, tmp_path, damage, caplog):
    path = files_in(tmp_path)[1]
    before = path.read_bytes()
    damage(path)
    again = blocks_of(stack).kept_in(tmp_path)
    assert_same_bits(again, blocks_of(stack, cache_bytes=2**30))
    assert path.read_bytes() == before
    assert ("is damaged" in caplog.text) == (damage is not os.remove)


def test_what_a_killed_writer_left_is_not_used_and_swept_out(stack, kept, tmp_path):
    left = kept._files.folder / ".000001-abc.features"
    left.write_bytes(files_in(tmp_path)[1].read_bytes()[:-100])
    files_in(tmp_path)[1].unlink()
    blocks_of(stack).kept_in(tmp_path)
    assert left.exists()  # perhaps somebody is still writing it
    os.utime(left, (0, 0))
    assert_same_bits(blocks_of(stack).kept_in(tmp_path), blocks_of(stack, cache_bytes=2**30))
    assert not left.exists()


# ---------------------------------------------------------------- room
def test_size_and_room_are_said_before_anything_is_written(stack, tmp_path, caplog):
    caplog.set_level("INFO")
    blocks = blocks_of(stack).kept_in(tmp_path)
    assert not files_in(tmp_path) and "Prepared features take" in caplog.text and "are free" in caplog.text
    manifest = json.loads((blocks._files.folder / "manifest.json").read_text())
    for index in range(len(blocks)):
        blocks.load(index, 1)
    assert manifest["bytes"] == sum(file.stat().st_size for file in files_in(tmp_path))
    assert manifest["images"] == 100 and "Delete this folder" in manifest["what"]
    caplog.clear()
    blocks_of(stack).kept_in(tmp_path)
    assert "are read from" in caplog.text


def test_a_disk_without_room_is_refused(stack, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda _: usage(10**6, 0, 10**5))
    with pytest.raises(
        OSError, match=r"No room .* it will have .*, and 97.7 kB are free. Make room"
    ) as caught:
        blocks_of(stack).kept_in(tmp_path)
    assert caught.value.errno == errno.ENOSPC and not files_in(tmp_path)


def test_only_what_is_missing_needs_room(stack, kept, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 0))
    assert_same_bits(blocks_of(stack).kept_in(tmp_path), kept)
    files_in(tmp_path)[0].unlink()
    with pytest.raises(OSError, match="Make room"):
        blocks_of(stack).kept_in(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_whole_files_alone(stack, tmp_path, monkeypatch, code):
    blocks, write_segment = blocks_of(stack).kept_in(tmp_path), FeatureFilesWrite(code)
    monkeypatch.setattr(feature_files.FeatureFiles, "_write_segment", write_segment)
    with pytest.raises(OSError, match="delete the folder to have their room back") as caught:
        for index in range(len(blocks)):
            blocks.load(index, 4)
    assert caught.value.errno == code
    names = sorted(path.name for path in blocks._files.folder.iterdir())
    assert names == ["000000.features", "manifest.json"]
    monkeypatch.undo()
    assert_same_bits(blocks_of(stack).kept_in(tmp_path), blocks_of(stack, cache_bytes=2**30))


class FeatureFilesWrite:
    """Writes the first file, and finds the disk full in the middle of the second."""

    def __init__(self, code):
        self.code, self.real, self.n_calls = code, feature_files.FeatureFiles._write_segment, 0

    def __get__(self, files, _):
        def write(file, segment, block):
            self.n_calls += 1
            if self.n_calls > len(files._segments) + 1:
                raise OSError(self.code, os.strerror(self.code))
            return self.real(files, file, segment, block)

        return write


def test_a_folder_that_cannot_be_written_is_refused(stack, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory.*Give a cache folder of your own"):
        blocks_of(stack).kept_in(tmp_path / "file")
    unread = blocks_of(stack).kept_in(tmp_path / "file", may_write=False)
    assert_same_bits(unread, blocks_of(stack, cache_bytes=2**30))


def test_who_may_not_write_uses_what_is_there(stack, tmp_path):
    reference = blocks_of(stack, cache_bytes=2**30)
    none = blocks_of(stack).kept_in(tmp_path / "absent", may_write=False)
    assert_same_bits(none, reference)
    assert not list(tmp_path.iterdir())
    blocks_of(stack).kept_in(tmp_path).load(1, 2)
    some = blocks_of(stack).kept_in(tmp_path, may_write=False)
    assert_same_bits(some, reference)
    assert [path.name for path in files_in(tmp_path)] == ["000001.features"]


def test_reading_takes_little_more_than_the_block(kept):
    block = kept._files.read(0, kept.layout)
    tracemalloc.start()
    kept._files.read(0, kept.layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * block.nbytes
