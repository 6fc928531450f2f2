from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.problem import Problem


def test_hand_made_loss():
    problem = Problem(np.array([[0, 1], [1, 0]], np.int32), np.array([1.0, 2.0]), np.array([1.0, 3.0]), (2, 2), 1,
                      (0.5, 0.0), (False, False), (False, False))
    factors = (np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    assert problem.predict(factors).tolist() == [4.0, 6.0]
    assert problem.loss(factors) == pytest.approx(0.5 * (9 + 3 * 16 + 0.5 * 5))


@pytest.mark.parametrize("order", ["C", "F"])
def test_seen_rows_and_squares_by_hand(order):
    index = np.asarray(np.array([[0, 1, 0], [2, 2, 2], [3, 0, 1]], np.int32), order=order)
    no = (False,) * 3
    problem = Problem(index, np.array([1.0, -2.0, 3.0]), np.array([1.0, 3.0, 2.0]), (2, 3, 5), 1, (0.0,) * 3, no, no)
    assert [mode.tolist() for mode in problem.seen()] == [[True, True], [False, False, True], [True, True, False, True, False]]
    assert problem.square() == pytest.approx(1 + 12 + 18)
    assert problem.square(unit=2.0) == pytest.approx(31 / 4)
    assert replace(problem, value=1e200 * problem.value).square(unit=1e200) == pytest.approx(31)
    assert replace(problem, index=index[:, :0], value=np.empty(0), weight=None).square() == 0
