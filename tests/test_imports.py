"""The tensor user pays for torch and NumPy, not for simulators, plots and compilers."""

import subprocess
import sys

from lowrank_rl import tensor

HEAVY = ("gymnasium", "mujoco", "sklearn", "tensorly", "numba", "matplotlib", "pandas")


def test_importing_the_tensor_room_loads_nothing_heavy():
    code = f"import sys; import lowrank_rl.tensor; print([name for name in {HEAVY!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_exists():
    assert all(hasattr(tensor, name) for name in tensor.__all__)
