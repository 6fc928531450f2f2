"""What every DynamicsModel promises, tried on each of them."""

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, DynamicsModel, EpisodeView, Transitions
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models.cadm import CaDMConfig, fit_cadm
from lowrank_rl.rl.models.ensemble_mean import EnsembleMean
from lowrank_rl.rl.models.epets import EPETSConfig, fit_epets
from lowrank_rl.rl.models.fused import WIDEST
from lowrank_rl.rl.models.gaussian import Descent
from lowrank_rl.rl.models.particles import Particles
from lowrank_rl.rl.models.persim import Exact, PerSimConfig, fit_persim
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline

AGENTS = 5
B, C, H = 6, 3, 4
BRIEF = Descent(updates=20, batch=16)


@dataclass(frozen=True)
class Case:
    model: DynamicsModel
    actions: Discrete | Box
    start: torch.Tensor        # (B, D) states it may be asked about
    close: float = 1e-12       # how well two ways to the same number agree
    knows_agents: bool = True  # by their numbers, and refuses others


def persim(actions, dims, personal, hidden=(8,), exact=None, **options):
    draw = stream(0, "conformance", dims)
    count = 200
    agent = torch.arange(count) % AGENTS
    state = torch.randn((count, dims), generator=draw, dtype=torch.float64)
    action = actions.sample((count,), generator=draw)
    change = 0.3 * (1 + agent[:, None]) * state.sin() + action.double().sum(1, keepdim=True)
    data = Transitions(agent, state, action, state + 0.1 * change)
    config = PerSimConfig(rank=3, members=3, state_hidden=hidden, action_hidden=(8,), adam=AdamConfig(epochs=3, batch=20),
                          exact=exact and Exact(exact, ALSConfig(sweeps=3)), **options)
    return Case(fit_persim(data, AGENTS, actions, config, seed=0, personal=personal), actions, state[:B], 2e-5)


def true_env(environment, close=1e-12):
    covariates = torch.tensor(environment.test_agents, dtype=torch.float64)
    start = environment.reset(B, generator=stream(0, "conformance", environment.name))
    return Case(TrueEnv(environment, covariates), environment.actions, start, close)


def cheetah():
    return true_env(pytest.importorskip("lowrank_rl.rl.envs.halfcheetah").ENVIRONMENT, 1e-5)   # its solver starts warm


def cadm(actions, dims, **options):
    config = CaDMConfig(past=4, future=3, width=2, hidden=(8, 8), context_hidden=(8,), descent=BRIEF, **options)
    data = episodes(actions, dims)
    return Case(fit_cadm(data, AGENTS, actions, config, seed=0), actions, data.state[:B], 2e-5, knows_agents=False)


def epets(actions, dims, personal=True, **options):
    config = EPETSConfig(members=3, width=2, hidden=(8, 8), descent=BRIEF, **options)
    data = episodes(actions, dims)
    return Case(fit_epets(data, AGENTS, actions, config, seed=0, personal=personal), actions, data.state[:B], 2e-5)


def episodes(actions, dims, steps=40):
    """One for each agent, of a stable system that is pushed about."""
    draw = stream(0, "conformance", "episodes", dims)
    gain, state, rows = 1 + torch.arange(AGENTS)[:, None].double(), torch.randn((AGENTS, dims), generator=draw).double(), []
    for _ in range(steps):
        action = actions.sample((AGENTS,), generator=draw)
        next_state = 0.9 * state + 0.03 * gain * state.flip(1).sin() + 0.1 * action.double().sum(1, keepdim=True)
        rows.append((state, action, next_state))
        state = next_state
    state, action, next_state = (torch.stack(x, dim=1).flatten(0, 1) for x in zip(*rows, strict=True))
    return Transitions(torch.arange(AGENTS).repeat_interleave(steps), state, action, next_state)


def particles(case, each):
    return Case(Particles(case.model, each * case.model.members), case.actions, case.start, case.close, case.knows_agents)


def mean_of(case):
    return Case(EnsembleMean(case.model), case.actions, case.start, case.close)


CASES = {
    "cadm": lambda: cadm(Discrete(3), 2, members=1, probabilistic=False),
    "cadm-pe": lambda: cadm(Box(-1.0, 1.0, 2), 3, members=3),
    "cadm-cheetah-like": lambda: cadm(Box(-1.0, 1.0, 2), 4, members=2, unseen=(0,), angles=(2,), absolute=(0,)),
    "epets": lambda: epets(Discrete(3), 2),
    "epets-continuous-angle": lambda: epets(Box(-1.0, 1.0, 2), 3, angles=(2,), inside=True),
    "epets-pooled": lambda: epets(Discrete(3), 2, personal=False),
    "particles": lambda: particles(cadm(Discrete(3), 2, members=2), 3),
    "particles-epets": lambda: particles(epets(Box(-1.0, 1.0, 2), 3), 2),
    "ensemble-mean-discrete": lambda: mean_of(persim(Discrete(3), 2, True)),
    "ensemble-mean-continuous": lambda: mean_of(persim(Box(-1.0, 1.0, 2), 3, True)),
    "persim-discrete": lambda: persim(Discrete(3), 2, True),
    "persim-discrete-deep": lambda: persim(Discrete(3), 2, True, hidden=(8, 8)),
    "persim-discrete-wide-state": lambda: persim(Discrete(3), WIDEST + 1, True),
    "persim-discrete-spline": lambda: persim(Discrete(3), 2, True, exact=Spline(2, (4, 3))),
    "persim-discrete-polynomial": lambda: persim(Discrete(3), 3, True, exact=Polynomial(3, 2)),
    "persim-discrete-spline-of-three": lambda: persim(Discrete(3), 3, True, exact=Spline(3, 2)),    # no fused loop for so many
    "pooled-discrete-spline": lambda: persim(Discrete(3), 2, False, exact=Spline(2, 4)),
    "persim-continuous": lambda: persim(Box(-1.0, 1.0, 2), 3, True),
    "persim-continuous-deep": lambda: persim(Box(-1.0, 1.0, 2), 3, True, hidden=(8, 8, 8)),
    "persim-discrete-angle": lambda: persim(Discrete(3), 2, True, angles=(1,), inside=True),
    "persim-continuous-angle": lambda: persim(Box(-1.0, 1.0, 2), 3, True, (8, 8), angles=(2, 0), inside=True,
                                              activation="silu"),
    "persim-joint": lambda: persim(Box(-1.0, 1.0, 2), 3, True, (8, 8, 8), joint=True),
    "persim-joint-angle": lambda: persim(Box(-1.0, 1.0, 2), 3, True, (8,), joint=True, angles=(1,), inside=True,
                                         activation="silu"),
    "pooled-joint": lambda: persim(Box(-1.0, 1.0, 2), 3, False, (8, 8), joint=True),
    "pooled-discrete": lambda: persim(Discrete(3), 2, False),
    "pooled-continuous": lambda: persim(Box(-1.0, 1.0, 2), 3, False),
    "true-mountaincar": lambda: true_env(mountaincar.ENVIRONMENT),
    "true-cartpole": lambda: true_env(cartpole.ENVIRONMENT),
    "true-halfcheetah": cheetah,
}
build = lru_cache(lambda name: CASES[name]())


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.mujoco) if "cheetah" in name else name for name in CASES])
def case(request):
    return build(request.param)


def view(case, agent, state):
    """Rows with a past that depends on nothing but the row itself; its first steps are unknown for some."""
    K, actions = case.model.past, case.actions
    back = torch.arange(K, 0, -1, device=state.device)[:, None]
    mask = back[:, 0] <= 2 * agent[:, None]
    turn = (agent[:, None, None] + 1) * back
    discrete = isinstance(actions, Discrete)
    past_action = turn % actions.n if discrete else (turn + torch.arange(actions.size, device=state.device)).to(state).cos()
    past_state = (state[:, None] + 0.01 * turn) * mask[..., None]
    return EpisodeView(torch.arange(len(agent)), agent, state, past_state, past_action * mask[..., None], mask)


def question(case, dtype=torch.float64):
    """Agents, context, a state per member, one action and C plans per row; no two rows alike."""
    draw = stream(1, "question")
    agent = torch.tensor([0, 4, 2, 2, 1, 3])
    state = case.start.to(dtype)
    context = case.model.context(view(case, agent, state))
    apart = 1e-3 * torch.randn((case.model.members, 1, 1), generator=draw, dtype=dtype)
    plans = case.actions.sample((B, C, H), generator=draw)
    return agent, context, state + apart, plans[:, 0, 0], plans


def close(case, a, b):
    torch.testing.assert_close(a.double(), b.double(), atol=case.close, rtol=case.close, equal_nan=True)


def test_shapes(case):
    _, context, state, action, plans = question(case)
    M, D = case.model.members, case.start.shape[1]
    assert context.shape[:2] == (M, B)
    assert context.ndim == 3
    assert case.model.predict(context, state, action).shape == (M, B, D)
    assert case.model.rollout(context, state, plans).shape == (M, B, C, H + 1, D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predict_keeps_dtype_and_device_of_the_state(case, dtype):
    _, context, state, action, _ = question(case, dtype)
    next_state = case.model.predict(context, state, action)
    assert (next_state.dtype, next_state.device) == (dtype, state.device)
    wide = case.model.predict(context, state.double(), action)
    torch.testing.assert_close(next_state.double(), wide, atol=1e-4, rtol=1e-4)


def test_a_batch_is_a_loop_over_rows(case):
    agent, context, state, action, plans = question(case)
    next_state, future = case.model.predict(context, state, action), case.model.rollout(context, state, plans)
    for b in range(B):
        own = case.model.context(view(case, agent[b:b + 1], case.start[b:b + 1]))
        close(case, own, context[:, b:b + 1])
        close(case, case.model.predict(own, state[:, b:b + 1], action[b:b + 1]), next_state[:, b:b + 1])
        close(case, case.model.rollout(own, state[:, b:b + 1], plans[b:b + 1]), future[:, b:b + 1])
        for c in range(C):
            close(case, case.model.rollout(own, state[:, b:b + 1], plans[b:b + 1, c:c + 1])[:, 0, 0], future[:, b, c])


def test_permuted_rows_give_permuted_answers(case):
    agent, context, state, action, plans = question(case)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = case.model.context(view(case, agent[order], case.start[order]))
    close(case, again, context[:, order])
    close(case, case.model.predict(again, state[:, order], action[order]), case.model.predict(context, state, action)[:, order])
    close(case, case.model.rollout(again, state[:, order], plans[order]), case.model.rollout(context, state, plans)[:, order])


def test_without_a_generator_nothing_is_drawn(case):
    _, context, state, action, plans = question(case)
    before = torch.random.get_rng_state()
    assert torch.equal(case.model.predict(context, state, action), case.model.predict(context, state, action))
    assert torch.equal(case.model.rollout(context, state, plans), case.model.rollout(context, state, plans))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_with_a_generator_only_noisy_models_draw(case):
    _, context, state, action, plans = question(case)
    before = torch.random.get_rng_state()
    for ask, what in ((case.model.predict, action), (case.model.rollout, plans)):
        mean, first, again, other = ask(context, state, what), *(ask(context, state, what, stream(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        if case.model.noisy:
            assert not torch.equal(first, mean)
            assert not torch.equal(first, other)
        else:
            assert torch.equal(first, mean)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_rollout_is_a_repeated_predict(case):
    _, context, state, _, plans = question(case)
    assert not torch.equal(plans[0], plans[1])                 # plans differ by row
    future = case.model.rollout(context, state, plans)
    close(case, future, rollout(case.model, context, state, plans))
    for c in range(C):
        now = state
        for h in range(H):
            close(case, future[:, :, c, h], now)
            now = case.model.predict(context, now, plans[:, c, h])
        close(case, future[:, :, c, H], now)


def test_one_plan_of_one_step(case):
    _, context, state, action, _ = question(case)
    future = case.model.rollout(context, state, action[:, None, None])
    close(case, future[:, :, 0, 0], state)
    close(case, future[:, :, 0, 1], case.model.predict(context, state, action))


def test_nan_in_is_nan_out_in_its_row_only(case):
    _, context, state, action, plans = question(case)
    broken = state.clone()
    broken[:, 2, 1] = torch.nan
    others = [0, 1, 3, 4, 5]
    for ask, what in ((case.model.predict, action), (case.model.rollout, plans)):
        whole, hurt = ask(context, state, what), ask(context, broken, what)
        assert hurt[:, 2].isnan().any(-1).all()
        close(case, hurt[:, others], whole[:, others])


def test_inputs_are_left_alone(case):
    agent, context, state, action, plans = question(case)
    before = [x.clone() for x in (agent, context, state, action, plans)]
    case.model.context(view(case, agent, case.start))
    case.model.predict(context, state, action)
    future = case.model.rollout(context, state, plans)
    future += 1                                                # nor may answers be views of them
    case.model.predict(context, state, action).add_(1)
    case.model.context(view(case, agent, case.start))
    for x, old in zip((agent, context, state, action, plans), before, strict=True):
        assert torch.equal(x, old)


@pytest.mark.parametrize("stranger", [-1, AGENTS])
def test_an_agent_out_of_range_is_refused(case, stranger):
    agent = torch.tensor([0, stranger, 1])
    if not case.knows_agents:
        assert case.model.context(view(case, agent, case.start[:3])).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"agent: expected integers 0\.\.4, got values"):
        case.model.context(view(case, agent, case.start[:3]))


def test_no_rows_are_no_trouble(case):
    _, context, state, action, plans = question(case)
    assert case.model.context(view(case, torch.zeros(0, dtype=torch.int64), case.start[:0])).shape[1] == 0
    assert case.model.predict(context[:, :0], state[:, :0], action[:0]).shape == (*state[:, :0].shape,)
    assert case.model.rollout(context[:, :0], state[:, :0], plans[:0]).shape[1:4] == (0, C, H + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["persim-discrete", "persim-continuous", "persim-joint-angle", "pooled-discrete", "cadm",
                                  "cadm-pe", "epets"])
def test_on_a_gpu_a_learned_model_says_the_same(name):
    case = CASES[name]()
    agent, context, state, action, plans = question(case)
    expected = case.model.predict(context, state, action), case.model.rollout(context, state, plans)
    case.model.module.to("cuda")
    moved = [x.to("cuda") for x in (agent, state, action, plans)]
    context = case.model.context(view(case, moved[0], moved[1][0]))
    found = case.model.predict(context, *moved[1:3]), case.model.rollout(context, moved[1], moved[3])
    for x, y in zip(found, expected, strict=True):
        assert x.device.type == "cuda"
        torch.testing.assert_close(x.cpu().double(), y.double(), atol=1e-3, rtol=1e-3)
