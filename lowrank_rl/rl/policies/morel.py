"""MOReL (Kidambi, Rajeswaran, Netrapalli & Joachims, NeurIPS 2020): a policy that fears what the logs do not show.

For each run: a model of its steps, from it the pessimistic MDP (pessimistic.py), in which PPO learns a policy that began as a
clone of whoever acted in the logs. Policies act by their likeliest action, without noise.

Differs: the paper's own planner is a natural policy gradient; PPO is that of the code cited by PerSim, here Stable-Baselines3's
(the extra ``policies``). That code trains without cloning and feeds raw states; ours are standardised, and rewards are divided
by one number so that values are about 1: otherwise the value's gradient is all that is left of the clipped one. Clones keep
some doubt about discrete actions, as the authors' keep their noise about continuous ones: from a clone that is sure of itself
PPO tries nothing, and follows an untrained value away from it.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowrank_rl import check, rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Discrete, DynamicsModel, Environment, Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.batches import Logs
from lowrank_rl.rl.policies.offline import WATCHED, Learned
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, load_moments, moments, named, part

if TYPE_CHECKING:
    from stable_baselines3 import PPO

    from lowrank_rl.rl.policies.pessimistic import Pessimistic

KIND = "MOReL"
TOLD = 100          # entries of a run's history
CLONED = 256        # logged steps of an update of cloning


@dataclass(frozen=True)
class MOReLConfig:
    """PPO's as in the code cited by PerSim, the penalty of MountainCar and CartPole (HalfCheetah: -200)."""
    steps: int = 1_000_000         # of PPO in the pessimistic MDP, for each run
    penalty: float = -50.0         # reward of the step that meets the unknown, beside the worst logged one for ever after
    beta: float = 3.0              # times the logs' greatest disagreement is unknown (authors'); inf: nothing is
    horizon: int = 500             # steps at which an episode is cut off; never beyond the environment's own
    logged: float = 0.0            # share of episodes that begin at any logged state; the others where logged ones begin
    clone: int = 5_000             # updates towards the logged actions before PPO; 0: none
    doubt: float = 0.1             # chance that clones leave to all discrete actions alike
    episodes: int = 64             # that run side by side
    rollout: int = 64              # steps of each between two updates of the policy
    hidden: tuple[int, ...] = (64, 64)      # tanh
    epochs: int = 4                # passes over these steps
    batch: int = 256
    learning_rate: float = 2.7e-4
    discount: float = 0.99
    trace: float = 0.95            # lambda of the generalised advantage
    clip: float = 0.2
    entropy: float = 0.01          # weight of the policy's entropy
    value: float = 0.5             # weight of the value's error
    log_std: float = -0.25         # of continuous actions at the start, the authors'

    def __post_init__(self) -> None:
        for name in ("steps", "horizon", "episodes", "rollout", "epochs"):
            check.count(name, getattr(self, name))
        check.count("batch", self.batch, 2)
        check.count("clone", self.clone, 0)
        offline.positive(learning_rate=self.learning_rate, clip=self.clip)
        offline.shares(logged=self.logged, doubt=self.doubt, discount=self.discount, trace=self.trace)
        if self.discount == 1 or not math.isfinite(self.penalty) or math.isnan(self.beta):
            raise ValueError(f"expected discount below 1, a finite penalty and a beta that is a number, got {self.discount!r}, "
                             f"{self.penalty!r} and {self.beta!r}")


def fit_morel(data: Experience, run: Tensor, environment: Environment, config: MOReLConfig, *, seed: int,
              fit_model: Callable[..., DynamicsModel], device: str = "cpu", checkpoint: str | Path | None = None,
              progress: Callable[[dict], None] | None = None, watch: Callable[[int, Learned], None] | None = None) -> Learned:
    """Learn the policies of all runs, one after the other.

    Args:
        data: logged steps of N agents. run: (N,) int64 which run learns from each agent's steps, -1 for none.
        environment: its actions, reward, ends and step limit are used, never its dynamics.
        fit_model: (a run's steps, seed=, device=, progress=, checkpoint=) -> DynamicsModel without a past, with ``unit``, the
            spread of a state difference, (D,). It is called again after a kill, so it had better keep a whole model in
            ``checkpoint``, which is removed here (``mlp_ensemble.fit_or_load``).
        device: of ``fit_model``; the policy's networks are so small that they stay on the CPU.
        checkpoint: runs are kept in files of this name and a number each; the same call goes on to the same bits, and
            removes them.
        progress: called with each entry of the history ("update": steps of all runs done, "loss": PPO's, "reward": mean
            return in the pessimistic MDP, "unknown": share of its episodes that ended there, "seconds"), and by ``fit_model``.
        watch: called about ``WATCHED`` times with the number of steps done and the policy so far; agents of runs that are
            not begun have none.

    Raises:
        ValueError: Stable-Baselines3 is missing; shapes that disagree, NaN or Inf, an agent out of range, actions of another
            kind or outside the bounds, a run without steps.
    """
    try:
        import stable_baselines3  # noqa: F401 (an extra)
    except ModuleNotFoundError as error:
        raise ValueError(f"morel: expected Stable-Baselines3, got '{error}'; pip install lowrank_rl[policies]") from error
    offline.checked(data, run, environment.actions)
    logs = Logs(data, run, isinstance(environment.actions, Discrete), "cpu")
    own, failed, history = run[data.agent], torch.full((logs.runs,), -1), []
    policies: list[Mlp] = []
    size = config.episodes * config.rollout
    whole = size * math.ceil(config.steps / size)                      # PPO takes whole rollouts
    total, job = whole * logs.runs, _job(data, run, environment, config, seed)
    files: list[Path] = []

    def learned(networks: list[Mlp]) -> Learned:
        G, bounds = len(networks), environment.actions
        options = {} if isinstance(bounds, Discrete) else {"low": bounds.low, "high": bounds.high}
        return Learned(choose, options, {"policy": Mlp.stack(networks)}, logs.center[:G], logs.scale[:G],
                       torch.where(run < G, run, -1), failed[:G].clone(), bounds, list(history))

    for g in range(logs.runs):
        rows = own == g
        steps = Experience(**{name: values[rows] for name, values in vars(data).items()})
        path = checkpoint and Path(checkpoint).with_name(f"{Path(checkpoint).name}.{g}")
        files += [path] if path else []
        told = partial(_tell, history, g * whole, history[-1]["seconds"] if history else 0.0, progress)

        def look(before: int, done: int, network: Callable[[], Mlp], g: int = g) -> None:
            before, done = before + g * whole, done + g * whole
            if watch and done * WATCHED // total > before * WATCHED // total:
                watch(done, learned([*policies, network()]))
        network, failed[g] = _run(steps, environment, config, logs.center[g], logs.scale[g], whole, rng.integer(
            seed, "morel", g), fit_model, device, Checkpoint(path, EVERY, f"{job} {g}"), told, progress, look)
        policies.append(network)
    for path in files:
        path.unlink(missing_ok=True)
    return learned(policies)


def _tell(history: list[dict], before: int, seconds: float, progress: Callable[[dict], None] | None, entry: dict,
          again: bool = False) -> None:
    """A run's entry into the history of all; ``again``: it was told before a kill."""
    history.append({**entry, "update": entry["update"] + before, "seconds": entry["seconds"] + seconds})
    if progress and not again:
        progress(history[-1])


def _run(data: Experience, environment: Environment, config: MOReLConfig, center: Tensor, scale: Tensor, whole: int, seed: int,
         fit_model: Callable[..., DynamicsModel], device: str, keep: Checkpoint, told: Callable[..., None],
         progress: Callable[[dict], None] | None, look: Callable[[int, int, Callable[[], Mlp]], None]) -> tuple[Mlp, int]:
    """One run's policy and the step at which its loss became NaN or Inf, -1 if it never did."""
    found = keep.resume()
    history: list[dict] = found[1] if found else []
    for entry in history:
        told(entry, again=True)
    if found and (history[-1]["update"] == whole or int(found[0]["failed"]) >= 0):
        return _of(found[0], len(config.hidden)), int(found[0]["failed"])
    file = keep.path and keep.path.with_name(keep.path.name + ".model")
    model = fit_model(data, seed=rng.integer(seed, "model"), device=device, progress=progress, checkpoint=file)
    with _streams():
        world = _world(model, environment, data, config, center, scale, rng.stream(seed, "episodes"))
        ppo = _ppo(world, config, rng.integer(seed, "networks") % 2**32)
        if found:
            ppo.policy.load_state_dict(part("policy", found[0]))
            load_moments(ppo.policy.optimizer, part("adam", found[0]))
            world.restore(part("world", found[0]))
        else:
            _clone(ppo, data, environment, config, center, scale, rng.stream(seed, "clone"))
            world.reset()
        failed = _improve(ppo, world, config, whole, seed, history, keep, told, look)
    if file:
        file.unlink(missing_ok=True)
    return _of(_tensors(ppo, world, failed), len(config.hidden)), failed


def _improve(ppo: "PPO", world: "Pessimistic", config: MOReLConfig, whole: int, seed: int, history: list[dict],
             keep: Checkpoint, told: Callable[..., None], look: Callable[[int, int, Callable[[], Mlp]], None]) -> int:
    """PPO up to ``whole`` steps, rollout by rollout, each with random streams named by the steps done."""
    size, begin = config.episodes * config.rollout, history[-1]["update"] if history else 0
    started, losses = time.monotonic() - (history[-1]["seconds"] if history else 0.0), []
    ppo.num_timesteps = begin
    for before in range(begin, whole, size):
        done, failed = before + size, -1
        ppo._last_obs, ppo._last_episode_starts = world.observed(), world.began
        ppo.set_random_seed(rng.integer(seed, before) % 2**32)
        try:
            ppo.learn(size, log_interval=None, reset_num_timesteps=False)
            losses.append(float(ppo.logger.name_to_value["train/loss"]))
        except ValueError:              # torch's word for a policy of NaN; nothing else is caught
            if _finite(ppo):
                raise
            losses.append(math.nan)
        if not (math.isfinite(losses[-1]) and _finite(ppo)):
            failed = done
        else:       # before it is kept, so that a killed training comes here again
            look(before, done, lambda: _of(_tensors(ppo, world, -1), len(config.hidden)))
        if done == whole or failed >= 0 or done * TOLD // whole > before * TOLD // whole:
            mean = float(np.mean(losses))
            entry = {"update": done, "loss": mean if math.isfinite(mean) else None, **world.told(),
                     "seconds": time.monotonic() - started}
            history.append(entry)
            told(entry)
            losses = []
            if done == whole or failed >= 0:
                keep.every = 0.0        # a finished run is kept at once
            keep.save(partial(_tensors, ppo, world, failed), history)
        if failed >= 0:
            return failed
    return -1


def _world(model: DynamicsModel, environment: Environment, data: Experience, config: MOReLConfig, center: Tensor,
           scale: Tensor, generator: torch.Generator) -> "Pessimistic":
    from lowrank_rl.rl.policies import pessimistic  # here, because it needs an extra

    unit = model.unit.cpu().float()
    limit = math.inf if config.beta == math.inf else pessimistic.threshold(model, unit, data, config.beta)
    # where each step costs something, a single penalty would make an early end the best of plans
    penalty = config.penalty + min(0.0, float(data.reward.min())) / (1 - config.discount)
    worth = max(abs(penalty), float(data.reward.double().abs().mean()) / (1 - config.discount)) or 1.0
    return pessimistic.Pessimistic(model, unit, environment, data, limit, penalty=penalty, logged=config.logged,
                                   horizon=min(config.horizon, environment.max_steps), worth=worth, center=center,
                                   scale=scale, episodes=config.episodes, generator=generator)


def _ppo(world: "Pessimistic", config: MOReLConfig, seed: int) -> "PPO":
    from stable_baselines3 import PPO  # here, because it is an extra
    from stable_baselines3.common.logger import Logger

    layers = list(config.hidden)
    made = PPO("MlpPolicy", world, learning_rate=config.learning_rate, n_steps=config.rollout,
               batch_size=min(config.batch, config.episodes * config.rollout), n_epochs=config.epochs, gamma=config.discount,
               gae_lambda=config.trace, clip_range=config.clip, ent_coef=config.entropy, vf_coef=config.value,
               policy_kwargs={"net_arch": {"pi": layers, "vf": layers}, "activation_fn": torch.nn.Tanh,
                              "log_std_init": config.log_std}, seed=seed, device="cpu")
    made.set_logger(Logger(None, []))
    return made


def _clone(ppo: "PPO", data: Experience, environment: Environment, config: MOReLConfig, center: Tensor, scale: Tensor,
           generator: torch.Generator) -> None:
    """Towards the logged actions: likelihood of discrete ones, with doubt, squared distance of continuous ones (authors')."""
    discrete = isinstance(environment.actions, Discrete)
    state, action = ((data.state - center) / scale).float(), data.action[:, 0] if discrete else data.action.float()
    adam = torch.optim.Adam(ppo.policy.parameters(), lr=1e-3)
    for _ in range(config.clone):
        rows = torch.randint(len(state), (CLONED,), generator=generator)
        found = ppo.policy.get_distribution(state[rows]).distribution
        loss = (functional.cross_entropy(found.logits, action[rows], label_smoothing=config.doubt) if discrete
                else (found.mean - action[rows]).square().mean())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()


def _tensors(ppo: "PPO", world: "Pessimistic", failed: int) -> dict[str, Tensor]:
    return {"failed": torch.tensor(failed), **named("policy", ppo.policy.state_dict()),
            **named("adam", moments(ppo.policy.optimizer)), **named("world", world.kept())}


def _of(tensors: dict[str, Tensor], hidden: int) -> Mlp:
    """The network that acts, out of Stable-Baselines3's parameters."""
    policy = part("policy", tensors)
    names = [*(f"mlp_extractor.policy_net.{2 * layer}" for layer in range(hidden)), "action_net"]
    weights = [policy[f"{name}.weight"].T for name in names]
    network = Mlp(1, (*(len(w) for w in weights), weights[-1].shape[1]), "tanh", generator=torch.Generator())
    network.load_state_dict({f"layers.{number}.{kind}": value.clone()[(None,) * (3 - value.ndim)]
                             for number, name in enumerate(names)
                             for kind, value in (("weight", weights[number]), ("bias", policy[f"{name}.bias"]))})
    return network


def _finite(ppo: "PPO") -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in ppo.policy.parameters())


@contextmanager
def _streams() -> Iterator[None]:
    """Stable-Baselines3 draws from the global streams; they are given back as they were."""
    numbers, others = np.random.get_state(), random.getstate()      # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numbers)                            # noqa: NPY002
            random.setstate(others)


def _job(data: Experience, run: Tensor, environment: Environment, config: MOReLConfig, seed: int) -> str:
    """Changes with the settings, the data or the seed."""
    digest = hashlib.blake2b(f"{config} {environment.name} {environment.actions} {seed}".encode(), digest_size=16)
    for values in (run, *vars(data).values()):
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def choose(networks: dict[str, Mlp], state: Tensor, generators: list[torch.Generator], **bounds: Any) -> Tensor:
    """The likeliest actions (B, A) of one run in states (B, D); ``low`` and ``high`` of continuous ones."""
    said = networks["policy"](state[None])[0]
    return said.clamp(bounds["low"], bounds["high"]) if bounds else said.argmax(1, keepdim=True)


load = partial(Learned.load, kind=KIND, choose=choose)
