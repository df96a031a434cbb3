"""What the speed benchmark counts as the bare products of a fit."""

from types import SimpleNamespace

import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import FeatureLayout


@pytest.fixture
def speed(benchmark):
    return benchmark("paper_speed")


@pytest.mark.parametrize("n_cross", [0, 6, 9])
def test_every_pass_is_counted_once(speed, n_cross):
    n_shells = np.array([6, 8, 10, 14, 19, 24, 24, 24, 24, 24])  # of ten iterations
    model = SimpleNamespace(iteration_resolution_=64 * 2.0 / n_shells, held_out_=np.arange(10) < n_cross)
    passes = speed.passes_of(model, SimpleNamespace(box=64, pixel_size=2.0))
    assert len(passes) == 10 + 2  # the last objective, and class averages
    assert [is_cross for *_, is_cross in passes] == [True] * n_cross + [False] * (12 - n_cross)
    compared, summed = zip(*[pair for *pair, _ in passes], strict=True)
    assert compared[0] == 6 and summed[-1] == 24
    assert list(compared[1:]) == list(summed[:-1])  # what is summed now is compared next


def test_operations_are_those_of_the_formula(speed):
    layout = FeatureLayout(np.array([0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 2]))  # P = 6, Q = 3, S = 2
    seconds, n_flops = speed.bare_products(layout, [(1, 2, False), (2, 2, True)], 1000, 5, 1)
    values = (2 + 1) + (6 + 3) + 2 * (6 + 2)
    assert n_flops == 2.0 * 1000 * 5 * values and seconds > 0


def test_the_headline_is_extrapolated_from_passes_of_the_library_as_it_is(
    speed, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(speed.manifold_blocks, "N_SHARDS", 1)  # which the script sets, for good
    case = {**speed.PAPER, "n": 64, "of": 1000, "box": 24, "nodes": 9, "iterations": 6}
    speed.simulate(tmp_path, case, 1)
    speed.extrapolate(tmp_path, case, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["files", "streamed"]
