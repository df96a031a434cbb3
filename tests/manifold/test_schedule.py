import pytest

from sklearn_cryoem.manifold.schedule import Schedule, Stage


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
