"""Makes the environments known to Gymnasium, which since version 1.0 reads no entry points: a package is imported.

>>> import gymnasium
>>> import lowrank_rl.rl.envs.registration
>>> env = gymnasium.make("lowrank_rl/HeteroMountainCar-v0", gravity=0.001)

or ``gymnasium.make("lowrank_rl.rl.envs.registration:lowrank_rl/HeteroMountainCar-v0")``, which imports it.
"""

import gymnasium

from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar


def register() -> None:
    """Register what is not yet registered; the paper's caps of 500, 200 and 1000 steps truncate."""
    for module in (mountaincar, cartpole, halfcheetah):
        environment = module.ENVIRONMENT
        if environment.gym_id not in gymnasium.registry:
            gymnasium.register(environment.gym_id, entry_point=f"{module.__name__}:make",
                               max_episode_steps=environment.max_steps)


register()
