"""Episodes that are stepped as one object, as Stable-Baselines3 (the extra ``policies``) wants many environments."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnv


class BatchedVecEnv(VecEnv):
    """A VecEnv without single environments: what is asked of each, the object answers for all."""

    render_mode = None

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raises ValueError for some of them, which cannot differ."""
        self._all("set_attr", indices)
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Called once. Raises ValueError for some of them."""
        self._all("env_method", indices)
        return [getattr(self, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _all(self, what: str, indices: Any) -> None:
        if len(set(self._get_indices(indices))) < self.num_envs:
            raise ValueError(f"{what}: expected all of {self.num_envs} episodes, as they are one object, got indices "
                             f"{indices!r}; leave indices out")
