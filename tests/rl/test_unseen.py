"""New agents of a PerSim: rows that are known, the posterior by hand, walls, MountainCar itself, and the doors."""

import numpy as np
import pytest
import torch

from lowrank_rl.rl import data
from lowrank_rl.rl.contracts import Box, Discrete, Transitions, fresh_view
from lowrank_rl.rl.envs import mountaincar
from lowrank_rl.rl.evaluate import prediction_error
from lowrank_rl.rl.models import contacts
from lowrank_rl.rl.models.persim import Exact, PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.row_polynomials import fit_polynomial
from lowrank_rl.rl.unseen import agent_rows, few_shot, with_agents, zero_shot
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial

CAR = mountaincar.ENVIRONMENT
CONFIG = PerSimConfig(rank=3, members=2, state_hidden=(6,), action_hidden=(4,), adam=AdamConfig(epochs=1, batch=64))
PEOPLE, DISCRETE = 30, Discrete(3)


def trained(actions=DISCRETE, **settings):
    """A model of any law, whose errors count as small."""
    draw = stream(0, "unseen")
    agent = torch.arange(300) % PEOPLE
    state = 5 + 3 * torch.randn((300, 2), generator=draw, dtype=torch.float64)
    steps = Transitions(agent, state, actions.sample((300,), generator=draw), state + state.sin() * (1 + agent[:, None]))
    model = fit_persim(steps, PEOPLE, actions, PerSimConfig(**{**vars(CONFIG), **settings}), seed=0)
    model.module.noise.fill_(1e-10)
    return model


def lived(model, rows, count, member=0, noise=0.0):
    """Steps of agents of these rows (U, R), as one member predicts them, from states of their own."""
    U = len(rows)
    draw = stream(7, "lived")
    agent = torch.arange(U).repeat_interleave(count)
    state = 5 + 3 * torch.randn((U * count, 2), generator=draw, dtype=torch.float64)
    action = torch.arange(U * count)[:, None] % 3 if model.discrete else \
        2 * torch.rand((U * count, model.action_width), generator=draw, dtype=torch.float64) - 1
    everyone = torch.stack([rows] * model.members)
    after = model.predict(everyone[:, agent], state.expand(model.members, *state.shape), action)[member]
    return Transitions(agent, state, action, after + noise * torch.randn(after.shape, generator=draw, dtype=torch.float64))


def secret(model, U=2):
    """Rows like the trained ones of member 0."""
    return (model.rows[0, :U] + 0.3 * model.rows[0, 5:5 + U]).to(model.rows)


def test_the_new_agents_are_the_last_and_the_others_as_before():
    model = trained()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    more = with_agents(model, torch.ones(2, 4, 3))
    assert model.rows.shape[1] == PEOPLE
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    view = fresh_view(torch.tensor([3, PEOPLE + 3]), torch.zeros(2, 2), 1)
    assert torch.equal(more.context(view)[:, 0], model.rows[:, 3])
    torch.testing.assert_close(more.context(view)[:, 1], torch.ones(2, 3))
    with pytest.raises(ValueError, match="agent: expected integers 0..33"):
        more.context(fresh_view(torch.tensor([PEOPLE + 4]), torch.zeros(1, 2), 1))


def test_it_saves_and_loads_with_the_new_agents(tmp_path):
    more = with_agents(trained(), torch.ones(2, 1, 3))
    more.save(tmp_path / "more.safetensors")
    assert torch.equal(PerSim.load(tmp_path / "more.safetensors").rows, more.rows)


@pytest.mark.parametrize(("actions", "settings"), [(Discrete(3), {}), (Box(-1.0, 1.0, 2), {}),
                                                   (Discrete(3), {"angles": (1,), "inside": True}),
                                                   (Box(-1.0, 1.0, 2), {"joint": True, "angles": (1,)})],
                         ids=["discrete", "continuous", "inputs", "joint"])
def test_few_steps_find_a_row_that_is_known(actions, settings):
    model = trained(actions, **settings)
    steps = lived(model, secret(model), 20)
    shuffled = Transitions(*(x[torch.arange(40).reshape(2, 20).T.flatten()] for x in vars(steps).values()))     # in turns
    for some in (steps, shuffled):
        found = few_shot(model, some)
        torch.testing.assert_close(found.rows[0, PEOPLE:], secret(model), rtol=1e-2, atol=1e-2)


def test_beyond_the_data_a_polynomial_is_asked_where_predictions_ask_it():
    model = trained(exact=Exact(Polynomial(2, 2), ALSConfig(sweeps=3)), members=1)
    rows = secret(model)
    draw = stream(8, "far")
    agent = torch.arange(2).repeat_interleave(30)
    state = 5 + 30 * torch.randn((60, 2), generator=draw, dtype=torch.float64)        # the data's deviation is 3
    action = torch.arange(60)[:, None] % 3
    after = model.predict(rows[None][:, agent], state[None], action)[0]
    new = torch.stack([row.row for row in agent_rows(model, Transitions(agent, state, action, after))], 1)
    torch.testing.assert_close(new[0], rows, rtol=1e-3, atol=1e-3)


def test_count_takes_the_first_steps_only():
    model = trained()
    steps = lived(model, secret(model), 12)
    later = torch.where(torch.arange(24)[:, None] % 12 >= 6, 100.0, steps.next_state)
    odd = Transitions(steps.agent, steps.state, steps.action, later)
    assert torch.equal(few_shot(model, odd, 6).rows, few_shot(model, steps, 6).rows)
    assert not torch.equal(few_shot(model, odd, 7).rows, few_shot(model, steps, 7).rows)


def test_steps_stopped_by_a_wall_are_left_out():
    """As in training: with them, the row is another; an agent that has no others keeps them."""
    model = trained()
    steps = lived(model, secret(model), 10)
    wall = contacts.find(torch.tensor([[-9.0, 0.0]] * 10 + [[float(i), i / 7] for i in range(40)], dtype=torch.float64))
    assert len(wall.bound) > 0
    model = PerSim(model.cp, True, wall, model.inputs)
    stopped = torch.arange(20) % 5 == 2
    bumped = Transitions(steps.agent, steps.state, steps.action,
                         torch.where(stopped[:, None], torch.tensor([-9.0, 0.0], dtype=torch.float64), steps.next_state))
    kept = Transitions(*(x[~stopped] for x in vars(steps).values()))
    assert torch.equal(few_shot(model, bumped).rows, few_shot(model, kept).rows)
    all_stopped = Transitions(steps.agent, steps.state, steps.action, torch.tensor([[-9.0, 0.0]]).double().expand(20, 2))
    assert agent_rows(model, all_stopped)[0].observations == 10


class Cloud:
    """A regression by hand."""

    def __init__(self, rows, error):
        self.mean, self.error = rows, error

    def rows(self, covariates):
        return self.mean

    def cloud(self, covariates):
        return torch.cat([self.mean[:, :, None] + self.error, self.mean[:, :, None] - self.error], 2)


def test_both_is_the_posterior_under_the_regressions_prior():
    """u = (P + X'X / noise)^-1 (P f + X'y / noise) with P the inverse covariance of the held-out errors."""
    model = trained()
    model.module.noise.fill_(0.01)
    errors = torch.randn((2, 2, 50, 3), generator=stream(3, "errors"), dtype=torch.float64) * torch.tensor([0.1, 0.02, 0.3])
    center = torch.stack([secret(model), secret(model)]).double() + 0.2
    steps = lived(model, secret(model), 4)
    found = agent_rows(model, steps, None, Cloud(center, errors), torch.zeros(2, 1))
    module = model.module
    for m in range(2):
        for u in range(2):
            mine = steps.agent == u
            basis = module.factor(1, steps.state[mine])[m].double()
            action = module.factor(2, steps.action[mine, 0])[m].double()
            X = (basis * action[:, None]).detach().flatten(0, 1).numpy()
            y = (((steps.next_state - steps.state)[mine] - module.center) / module.scale).flatten().numpy()
            e = torch.cat([errors[m, u], -errors[m, u]]).numpy()
            P = np.linalg.inv(e.T @ e / (len(e) - 1))
            noise = float(found[u].noise[m])
            by_hand = np.linalg.solve(P + X.T @ X / noise, P @ center[m, u].numpy() + X.T @ y / noise)
            np.testing.assert_allclose(found[u].row[m], by_hand, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found[u].covariance[m], np.linalg.inv(P + X.T @ X / noise), rtol=1e-3, atol=1e-7)


def test_a_sure_regression_stays_and_a_vague_one_gives_way():
    model = trained()
    center = torch.stack([secret(model)] * 2).double() + 1.0
    unit = torch.randn((2, 2, 50, 3), generator=stream(3, "errors"), dtype=torch.float64)
    steps = lived(model, secret(model), 15)
    sure, vague = (few_shot(model, steps, None, Cloud(center, size * unit), torch.zeros(2, 1)).rows[0, PEOPLE:]
                   for size in (1e-9, 10.0))
    torch.testing.assert_close(sure, center[0].to(sure), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vague, secret(model), rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def cars():
    """Simulators of 40 cars, and gravities of cars that they have not seen."""
    covariates = data.agents(CAR, 40, seed=0)
    logged = data.collect(CAR, covariates, torch.arange(40), Uniform(CAR.actions), seed=0, what="random", max_steps=300)
    config = PerSimConfig(rank=3, members=1, exact=Exact(Polynomial(2, 6), ALSConfig(sweeps=20, tol=0.01)))
    return fit_persim(logged.transitions(), 40, CAR.actions, config, seed=0), covariates, \
        torch.tensor([[0.00005], [0.002], [0.004]], dtype=torch.float64)


def test_unseen_cars_are_predicted_as_well_as_seen_ones(cars):
    """All three ways: within three times the trained cars' error, and a quarter of what the average car's simulator errs."""
    model, covariates, gravity = cars
    own = data.collect(CAR, gravity, torch.arange(3), Uniform(CAR.actions), seed=1, what="unseen", max_steps=25).transitions()
    who = torch.arange(0, 40, 2)
    regression = fit_polynomial(model, who, covariates[who])
    everybody = torch.cat([covariates, gravity])

    def rmse(model, agents):
        found = prediction_error(CAR, model, everybody, agents, Uniform(CAR.actions), episodes=5, seed=0)
        return max(error.rmse for error in found.values())

    seen = rmse(model, [0, 1, 2, 3, 4])
    average = with_agents(model, model.rows.mean(1, keepdim=True).expand(-1, 3, -1))
    nothing = rmse(average, [40, 41, 42])
    for more in (zero_shot(model, regression, gravity), few_shot(model, own, 25), few_shot(model, own, 5, regression, gravity)):
        assert rmse(more, [40, 41, 42]) < min(3 * seen, 0.25 * nothing)


def change(steps, **parts):
    return Transitions(**{**vars(steps), **parts})


@pytest.mark.parametrize(("steps", "options", "words"), [
    (lambda s: s, {"count": 11}, "count: expected at most 10, the steps of agent 0, got 11; use fewer"),
    (lambda s: s, {"count": 0}, "count: expected a whole number >= 1"),
    (lambda s: change(s, agent=2 * s.agent), {}, "each of 3 new agents, got none of agent 1"),
    (lambda s: change(s, agent=s.agent - 1), {}, "whole numbers 0..U-1 for U new agents, got torch.int64 from -1"),
    (lambda s: Transitions(*(x[:0] for x in vars(s).values())), {}, "at least one of each new agent, got none; .*zero_shot"),
    (lambda s: change(s, state=s.state * torch.nan), {}, "state: 40 of 40 values are NaN or Inf"),
    (lambda s: change(s, next_state=s.next_state[:5]), {}, "next_state: axis B is 5"),
    (lambda s: change(s, state=s.state[:, :1], next_state=s.next_state[:, :1]), {}, "state: expected 2 dimensions.* got 1"),
    (lambda s: change(s, action=s.action.double()), {}, "one of 3 actions as an integer.* got 1 columns of torch.float64"),
    (lambda s: change(s, action=s.action + 1), {}, "action: expected integers 0..2, got values 1..3"),
    (lambda s: s, {"covariates": torch.ones(2, 1)}, "expected both or neither, got one"),
    (lambda s: s, {"regression": Cloud(torch.ones(2, 1, 3), torch.ones(2, 1, 9, 3)), "covariates": torch.ones(1, 1)},
     "those of 2 agents, as many as have steps, got 1"),
    (lambda s: s, {"regression": Cloud(torch.ones(1, 2, 3), torch.ones(1, 2, 9, 3)), "covariates": torch.ones(2, 1)},
     "fitted to this model, 2 members of rank 3, got one of 1 members of rank 3"),
])
def test_odd_steps_are_refused(steps, options, words):
    model = trained()
    with pytest.raises(ValueError, match=words):
        few_shot(model, steps(lived(model, secret(model), 10)), **options)


def test_continuous_models_refuse_discrete_actions():
    model = trained(Box(-1.0, 1.0, 2))
    steps = lived(model, secret(model), 10)
    with pytest.raises(ValueError, match="action: expected 2 columns of floats.* got 1 columns of torch.int64"):
        few_shot(model, change(steps, action=torch.zeros((20, 1), dtype=torch.int64)))


@pytest.mark.parametrize(("rows", "words"), [(torch.ones(2, 1, 4), "rows: expected \\(members, agents, rank\\) \\(2, U, 3\\)"),
                                             (torch.full((2, 1, 3), torch.nan), "rows: 6 of 6 values are NaN or Inf")])
def test_odd_rows_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        with_agents(trained(), rows)


def test_models_that_do_not_tell_agents_apart_are_refused():
    model = trained()
    with pytest.raises(ValueError, match="got one that does not tell agents apart"):
        with_agents(PerSim(model.cp, False), torch.ones(2, 1, 3))
