"""What every Policy promises, tried on each of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from stand_ins import network

from lowrank_rl.rl.behaviour import trained
from lowrank_rl.rl.contracts import Box, Discrete, Environment, EpisodeView, Experience, Policy, Transitions
from lowrank_rl.rl.data import collect
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import CEMConfig, ICEMConfig, ShootingConfig, cem, icem, random_shooting
from lowrank_rl.rl.policies.bcq import BCQConfig, fit_bcq
from lowrank_rl.rl.policies.bcq_continuous import ContinuousBCQConfig, fit_bcq_continuous
from lowrank_rl.rl.policies.cloned import CloneConfig, fit_cloned
from lowrank_rl.rl.policies.cql import CQLConfig, fit_cql
from lowrank_rl.rl.policies.cql_continuous import ContinuousCQLConfig, fit_cql_continuous
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.score import mountaincar_bonus, total_reward
from lowrank_rl.rng import stream

# episodes that end here and there
CAR = replace(mountaincar.ENVIRONMENT, max_steps=12, ended=lambda state: (state[..., 0] > -0.44) | (state[..., 0] < -0.56))
POLE = replace(cartpole.ENVIRONMENT, max_steps=25, ended=lambda state: (state[..., ::2].abs() > 0.05).any(-1))


def glide(covariates, state, action):
    """Pushed by the mean of the torques, each agent at its own strength."""
    return torch.stack([state[:, 0] + state[:, 1], state[:, 1] + 0.3 * covariates[:, 0] * action.mean(1)], dim=1)


PUCK = Environment(
    name="puck", gym_id="", state_names=("x", "v"), actions=Box(-1.0, 1.0, 6), covariate_names=("strength",),
    covariate_low=(0.5,), covariate_high=(2.0,), test_agents=((0.5,), (1.0,), (1.5,), (2.0,), (2.5,)),
    policy_training_agents=(), default_agent=(1.0,), max_steps=12,
    reset=lambda count, *, generator: torch.rand((count, 2), generator=generator, dtype=torch.float64) - 0.5, step=glide,
    reward=lambda state, action, next_state: next_state[..., 0], ended=lambda state: state[..., 0].abs() > 1)


def covariates(environment):
    return torch.tensor(environment.test_agents, dtype=torch.float64)


def mpc(environment, planner, config, score):
    model = TrueEnv(environment, covariates(environment))
    return MPC(model, partial(planner, actions=environment.actions, config=config), score)


def puck_players(explore):
    """Wide, so that a matrix product sums in another order when there are other rows beside."""
    networks = [network(2, 6, hidden=(256, 256), seed=seed) for seed in range(3)]
    return trained.Trained(networks, torch.tensor([0, 2, 1, 0, 2]), PUCK.actions, explore)


def cloned_puck():
    """Of logs of two kinds of pilots."""
    agent, draw = torch.arange(600) % 5, stream(0, "pucks")
    state = torch.rand((600, 2), generator=draw, dtype=torch.float64) - 0.5
    action = (5 * state[:, :1] + torch.arange(6) + 2.0 * (agent % 2)[:, None]).sin()
    logged = Transitions(agent, state, action, state)
    return fit_cloned(logged, 5, PUCK.actions, CloneConfig(rank=4, hidden=(16,), epochs=400, skills=2), seed=0)


def guided():
    cloned = cloned_puck()
    planner = partial(icem, actions=PUCK.actions, config=ICEMConfig(horizon=4, candidates=20, elites=5, rounds=2))
    return MPC(TrueEnv(PUCK, covariates(PUCK)), planner, total_reward(PUCK), guide=partial(cloned.propose, horizon=4))


def learned(environment, fit, config):
    """From random logs of all five agents, one policy for the first two and one for the others; its batch is small."""
    agent = torch.arange(300) % 5
    state = torch.cat([environment.reset(1, generator=stream(0, "logs", row)) for row in range(300)])
    action = environment.actions.sample((300,), generator=stream(0, "logs"))
    next_state = environment.step(covariates(environment)[agent], state, action)
    logged = Experience(agent, state, action, next_state, environment.reward(state, action, next_state),
                        environment.ended(next_state))
    return fit(logged, torch.tensor([0, 0, 1, 1, 1]), environment.actions, config, seed=0)


@dataclass(frozen=True)
class Case:
    environment: Environment
    make: Callable[[], Policy]


CASES = {
    "uniform-discrete": Case(POLE, lambda: Uniform(POLE.actions)),
    "uniform-box": Case(PUCK, lambda: Uniform(PUCK.actions)),
    "mpc-shooting": Case(CAR, lambda: mpc(CAR, random_shooting, ShootingConfig(horizon=6, candidates=20), mountaincar_bonus)),
    "mpc-shooting-sticky": Case(POLE, lambda: mpc(POLE, random_shooting, ShootingConfig(8, 9, (0.0, 0.9)), total_reward(POLE))),
    "mpc-cem": Case(PUCK, lambda: mpc(PUCK, cem, CEMConfig(horizon=4, candidates=20, elites=5, rounds=2), total_reward(PUCK))),
    "mpc-icem": Case(PUCK, lambda: mpc(PUCK, icem, ICEMConfig(4, candidates=20, elites=5, rounds=2), total_reward(PUCK))),
    "mpc-guided": Case(PUCK, guided),
    "cloned": Case(PUCK, cloned_puck),
    "bcq": Case(POLE, lambda: learned(POLE, fit_bcq, BCQConfig(updates=20))),
    "cql": Case(CAR, lambda: learned(CAR, fit_cql, CQLConfig(updates=20, batch=32))),
    "bcq-continuous": Case(PUCK, lambda: learned(PUCK, fit_bcq_continuous, ContinuousBCQConfig(updates=5, batch=32))),
    "cql-continuous": Case(PUCK, lambda: learned(PUCK, fit_cql_continuous, ContinuousCQLConfig(updates=5, batch=32))),
    "trained-for-data": Case(POLE, lambda: trained.data_policy(POLE, covariates(POLE), share=0.2)),
    "trained-for-tests": Case(CAR, lambda: trained.tester(CAR, len(CAR.test_agents))),
    "trained-box": Case(PUCK, lambda: puck_players(0.0)),
    "trained-box-explores": Case(PUCK, lambda: puck_players(0.3)),
}
AGENT = torch.tensor([3, 0, 1, 4, 2, 0])          # one of them twice


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def episodes(case, policy, rows=slice(None), seed=0):
    agent = AGENT[rows]
    return collect(case.environment, covariates(case.environment)[agent], agent, policy, seed=seed, what="conformance")


def actions(found, e):
    return found.action[found.start[e]:found.start[e + 1]]


def view(case, episode=range(6), seed=0):
    episode = torch.tensor(list(episode))
    state = case.environment.reset(6, generator=stream(seed, "view"))[episode]
    B, D = state.shape
    return EpisodeView(episode, AGENT[episode], state, state.new_zeros((B, 0, D)),
                       torch.zeros((B, 0, case.environment.actions.size)), torch.zeros((B, 0), dtype=torch.bool))


def streams(count, seed=0):
    return [stream(seed, "conformance", row) for row in range(count)]


def test_actions_have_their_shape_type_and_bounds(case):
    policy, space = case.make(), case.environment.actions
    policy.reset(AGENT)
    found = []
    for seed in range(10):
        for rows in (range(6), (1, 4), (5,)):
            action = policy.act(view(case, rows, seed), generators=streams(len(rows), seed))
            assert action.shape == (len(rows), space.size)
            found.append(action)
    found = torch.cat(found)
    if isinstance(space, Discrete):
        assert found.dtype == torch.int64
        assert 2 <= len(found.unique()) <= space.n
        assert set(found.flatten().tolist()) <= set(range(space.n))
    else:
        assert found.is_floating_point()
        assert ((found >= space.low) & (found <= space.high)).all()
        assert (found.amax(0) - found.amin(0)).min() > 0.1 * (space.high - space.low)     # every component moves


def test_reset_forgets(case):
    policy = case.make()

    def act():
        policy.reset(AGENT)
        generators = streams(6)
        return [policy.act(view(case), generators=generators) for _ in range(3)]
    first, again = act(), act()
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    policy.reset(AGENT[:2])
    policy.act(view(case, range(2), seed=1), generators=streams(2, seed=1))
    assert all(torch.equal(x, y) for x, y in zip(first, act(), strict=True))


def test_same_seed_same_bits(case):
    first, again, other = (episodes(case, case.make(), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.action, again.action)
    assert np.array_equal(first.next_state, again.next_state)
    assert not np.array_equal(first.state[0], other.state[0])


def test_an_episode_does_not_depend_on_its_company(case):
    together = episodes(case, case.make())
    assert len(set(together.lengths.tolist())) > 1            # the batch shrinks on the way
    for e in range(6):
        rows = [1, 5] if e == 5 else [e]                      # the second episode of agent 0 needs its first
        alone = episodes(case, case.make(), rows)
        assert np.array_equal(actions(alone, len(rows) - 1), actions(together, e))


def test_act_leaves_the_view_alone(case):
    policy, shown, kept = case.make(), view(case), view(case)
    policy.reset(AGENT)
    policy.act(shown, generators=streams(6))
    assert all(torch.equal(x, y) for x, y in zip(vars(shown).values(), vars(kept).values(), strict=True))


def test_nothing_is_drawn_but_from_the_generators(case):
    before = torch.random.get_rng_state()
    episodes(case, case.make())
    assert torch.equal(torch.random.get_rng_state(), before)
