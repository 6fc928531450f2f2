"""A user pays for what he uses: importing the tensor room costs nothing, discrete completion no torch."""

import subprocess
import sys

from lowrank_rl import tensor

HEAVY = ("torch", "gymnasium", "mujoco", "sklearn", "tensorly", "numba", "matplotlib", "pandas")


def loaded(code: str) -> set[str]:
    """Which heavy packages a fresh Python has after running this."""
    code = f"import sys; {code}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_the_tensor_room_loads_nothing_heavy():
    assert loaded("from lowrank_rl.tensor import CP, Observed") == set()


def test_networks_need_torch_alone():
    assert loaded("from lowrank_rl.tensor import AdamConfig, Categorical, FunctionalCP, Neural") == {"torch"}


def test_discrete_completion_needs_no_torch():
    names = loaded("import numpy as np; from lowrank_rl.tensor import CPCompletion; "
                   "CPCompletion(1).fit(np.array([[0, 0], [1, 1], [0, 1]]), np.ones(3)).predict(np.array([[1, 0]]))")
    assert names - {"pandas"} == {"sklearn", "numba"}    # scikit-learn brings pandas where there is one


def test_every_public_name_exists():
    assert all(hasattr(tensor, name) for name in tensor.__all__)
