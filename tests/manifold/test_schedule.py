import pytest

from sklearn_cryoem.manifold.schedule import Schedule, Stage, cross_fitted_iterations


def test_shells_grow_and_temperature_falls_until_both_are_final():
    schedule = Schedule.of(6, 31, 4.0, max_iter=100)
    stages = [schedule.stage(i) for i in range(100)]
    assert stages[0] == Stage(6, 4.0)
    shells, temperatures = zip(*stages, strict=True)
    assert list(shells) == sorted(shells) and list(temperatures) == sorted(temperatures, reverse=True)
    assert set(stages[schedule.n_iterations :]) == {Stage(31, 1.0)}


@pytest.mark.parametrize("max_iter", [1, 2, 3, 10])
def test_a_short_run_still_ends_with_everything(max_iter):
    schedule = Schedule.of(6, 31, 2.0, max_iter)
    assert schedule.stage(max_iter - 1) == Stage(31, 1.0)


def test_nothing_to_march_takes_no_iterations():
    assert Schedule.of(1, 1, 1.0, 100).n_iterations == 0
    assert Schedule.of(40, 31, 1.0, 100).stage(0) == Stage(31, 1.0)


@pytest.mark.parametrize("max_iter", [5, 6, 10, 30, 100, 1000])
def test_cross_fitted_iterations_march_to_their_last_and_leave_room_for_ordinary_ones(max_iter):
    n_cross = cross_fitted_iterations(max_iter)
    assert 0 < n_cross <= 60 and max_iter - n_cross >= max(4, max_iter // 5)
    stages = [Schedule.cross_fitted(3, 12, 2.0, max_iter).stage(i) for i in range(n_cross)]
    assert stages[-1] == Stage(12, 1.0) and stages[:-1].count(stages[-1]) == 0
    assert stages[0] == Stage(3, 2.0) or n_cross == 1


def test_too_few_iterations_have_none_that_are_cross_fitted():
    assert [cross_fitted_iterations(max_iter) for max_iter in (1, 2, 3, 4)] == [0, 0, 0, 0]
