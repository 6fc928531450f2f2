"""The episodes of a Simulator side by side for Stable-Baselines3 (the extra ``policies``), whose vector form is its own."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from lowrank_rl.rl.envs.vec_env import BatchedVecEnv
from lowrank_rl.rl.simulator import Simulator
from lowrank_rl.rl.simulator_env import checked_actions, spaces_of


class SimulatedVecEnv(BatchedVecEnv):
    """``PPO("MlpPolicy", SimulatedVecEnv(simulator, [3] * 16))``: 16 episodes of agent 3, stepped by one call of the model.

    Row i with seed s runs the episodes of ``simulator.env(agents[i])`` with seed s + i.

    Raises:
        ValueError: no agents, one that the model does not know, actions outside the action space.
    """

    def __init__(self, simulator: Simulator, agents: Sequence[int]) -> None:
        self.simulator, self._play = simulator, simulator.play(agents)
        super().__init__(len(agents), *spaces_of(simulator.environment))
        self._draws: list[np.random.Generator | None] = [None] * len(agents)

    def reset(self) -> np.ndarray:
        self._draws = [seeding.np_random(seed)[0] if draw is None or seed is not None else draw
                       for draw, seed in zip(self._draws, self._seeds, strict=True)]
        self._play.begin(range(self.num_envs), self._draws)
        self._tell(range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        return self._play.observed()

    def step_async(self, actions: np.ndarray) -> None:
        self._action = checked_actions(self.simulator.environment.actions, actions, (self.num_envs,))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        met = self._play.step(self._action)
        told = zip(met.epistemic_std.tolist(), met.outside.tolist(), met.truncated.tolist(), strict=True)
        infos: list[dict[str, Any]] = [{"epistemic_std": apart, "outside": outside, "TimeLimit.truncated": cut}
                                       for apart, outside, cut in told]
        done = met.terminated | met.truncated
        if done.any():
            rows, last = np.flatnonzero(done).tolist(), self._play.observed()
            for row in rows:
                infos[row]["terminal_observation"] = last[row]
            self._play.begin(rows, [self._draws[row] for row in rows])
            self._tell(rows)
        return self._play.observed(), met.reward.astype(np.float32), done, infos

    def _tell(self, rows: Iterable[int]) -> None:
        """Who these episodes, which have just begun, are of."""
        for row in rows:
            self.reset_infos[row] = {"agent": int(self._play.agent[row]), "member": int(self._play.member[row])}
