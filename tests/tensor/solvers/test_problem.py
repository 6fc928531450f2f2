import numpy as np
import pytest

from lowrank_rl.tensor.solvers.problem import Problem


def test_hand_made_loss():
    problem = Problem(np.array([[0, 1], [1, 0]], np.int32), np.array([1.0, 2.0]), np.array([1.0, 3.0]), (2, 2), 1,
                      (0.5, 0.0), (False, False), (False, False))
    factors = (np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    assert problem.predict(factors).tolist() == [4.0, 6.0]
    assert problem.loss(factors) == pytest.approx(0.5 * (9 + 3 * 16 + 0.5 * 5))
