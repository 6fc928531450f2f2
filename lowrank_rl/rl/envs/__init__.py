"""Importing this package makes the environments known to Gymnasium, which since 1.0 has no other way to find them.

>>> import gymnasium, lowrank_rl.rl.envs
>>> gymnasium.make("lowrank_rl/HeteroMountainCar-v0", gravity=0.001)
"""

import gymnasium

for _name, _module, _steps in (("HeteroMountainCar", "mountaincar", 500), ("HeteroCartPole", "cartpole", 200),
                               ("HeteroHalfCheetah", "halfcheetah", 1000)):
    gymnasium.register(f"lowrank_rl/{_name}-v0", entry_point=f"lowrank_rl.rl.envs.{_module}:make", max_episode_steps=_steps)
