"""What can be run: every row is there, and the paper's settings are the paper's."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from lowrank_rl import check
from lowrank_rl.rl import data
from lowrank_rl.rl.behaviour.trained import fingerprint
from lowrank_rl.rl.bench import cases, pieces
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import Transitions
from lowrank_rl.rl.models.persim import PerSimConfig, fit_persim
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import CEMConfig, ShootingConfig
from lowrank_rl.tensor import AdamConfig

NAMES = ("mountaincar", "cartpole", "halfcheetah")


def test_every_row_is_there():
    assert tuple(cases.ENVIRONMENTS) == NAMES
    assert set(cases.LEARNING) == set(cases.PLANNING) == set(product(cases.SETTINGS, NAMES))
    assert set(cases.BUDGETS) == set(product(cases.BUDGET_NAMES, NAMES))
    assert {"persim", "pooled", "true-env-mpc", "uniform"} <= set(cases.METHODS)
    assert {"quick", "small", "paper"} <= set(cases.BUDGET_NAMES)
    assert tuple(cases.BEHAVIOUR) == ("random", "pure", "pure-eps-20", "pure-eps-40")      # PerSim, appendix E
    assert {name: logs.agents for name, logs in cases.DATASETS.items() if name not in cases.BEHAVIOUR} == {
        f"{name}-of-{count}": count for name in ("random", "pure") for count in (250, 100, 50, 25, 10)}


@pytest.mark.parametrize("key", list(cases.BUDGETS))
def test_a_budget_can_be_run(key):
    budget, environment = cases.BUDGETS[key], cases.ENVIRONMENTS[key[1]]
    assert budget.agents > len(environment.test_agents)
    assert min(budget.members, budget.seeds, budget.error_episodes, budget.return_episodes) >= 1
    assert 0 < budget.epochs <= 1
    assert budget.return_steps is None or 1 <= budget.return_steps < environment.max_steps
    assert len(data.agents(environment, budget.agents, seed=0)) == budget.agents


@pytest.mark.parametrize("environment", NAMES)
def test_budgets_grow(environment):
    quick, small, paper = (cases.BUDGETS[name, environment] for name in ("quick", "small", "paper"))
    for field in ("agents", "members", "epochs", "error_episodes", "return_episodes"):
        assert getattr(quick, field) <= getattr(small, field) <= getattr(paper, field), field
    assert quick.seeds <= small.seeds <= paper.seeds


# persim_reproduction.md, section 2: rank 3 / 5 / 15; state network 1x256 (HalfCheetah 4x256), action network 2x256;
# batch 512 / 64 / 512; Adam 1e-3, 300 epochs, halved after 150; no validation split; PyTorch's own linear start, biases
# in the one-hot layers; normalised for HalfCheetah only.
@pytest.mark.parametrize(("environment", "rank", "hidden", "batch", "normalize"), [
    ("mountaincar", 3, (256,), 512, False),
    ("cartpole", 5, (256,), 64, False),
    ("halfcheetah", 15, (256, 256, 256, 256), 512, True)])
def test_the_papers_training(environment, rank, hidden, batch, normalize):
    budget = cases.BUDGETS["paper", environment]
    assert cases.learning("paper", environment, budget) == PerSimConfig(
        rank=rank, members=5, state_hidden=hidden, action_hidden=(256, 256), init="linear", normalize=normalize,
        walls=False, precision="full", activation="relu", angles=(), inside=False, multistep=None,
        adam=AdamConfig(epochs=300, batch=batch, learning_rate=1e-3, schedule="halve", held_out=0.0, patience=0))


# persim_reproduction.md, section 3: 1000 uniform plans of 50 steps; MountainCar's bonus. Cross-entropy: 200 plans of 30
# steps, 1 + 5 rounds, 50 elites, 0.1 of the old kept, first deviation 0.3 + 0.3 U(0, 1).
@pytest.mark.parametrize(("environment", "planner", "score"), [
    ("mountaincar", ShootingConfig(horizon=50, candidates=1000, stay=(0.0,)), "mountaincar bonus"),
    ("cartpole", ShootingConfig(horizon=50, candidates=1000, stay=(0.0,)), "total reward"),
    ("halfcheetah", CEMConfig(horizon=30, candidates=200, elites=50, rounds=6, smoothing=0.1, spread=(0.3, 0.6)),
     "total reward")])
def test_the_papers_planning(environment, planner, score):
    assert cases.PLANNING["paper", environment] == cases.Planning(planner, score, price=0.0)


# Same, sections 1 and 3: 500 agents, 5 models, 5 repeats, 200 episodes for errors, 20 for returns, none cut short.
@pytest.mark.parametrize("environment", NAMES)
def test_the_papers_experiment(environment):
    assert cases.BUDGETS["paper", environment] == cases.Budget(
        agents=500, members=5, epochs=1.0, seeds=5, error_episodes=200, return_episodes=20, return_steps=None)


# Same, section 1 (and the paper's Table 4).
@pytest.mark.parametrize(("environment", "agents", "steps"), [
    ("mountaincar", ((1e-4,), (5e-4,), (1e-3,), (2.5e-3,), (3.5e-3,)), 500),
    ("cartpole", ((2, 0.5), (10, 0.5), (18, 0.5), (10, 0.85), (10, 0.15)), 200),
    ("halfcheetah", ((0.3, 1.7), (1.7, 0.3), (0.3, 0.3), (1.7, 1.7), (1, 1)), 1000)])
def test_the_papers_agents(environment, agents, steps):
    assert cases.ENVIRONMENTS[environment].test_agents == agents
    assert cases.ENVIRONMENTS[environment].max_steps == steps


def test_a_budget_takes_its_share_of_the_epochs_and_at_least_one():
    budget = cases.BUDGETS["quick", "mountaincar"]
    for share, epochs in ((1.0, 300), (0.5, 150), (0.1, 30), (1e-9, 1)):
        assert cases.learning("paper", "mountaincar", replace(budget, epochs=share)).adam.epochs == epochs
    for members in (1, 3):
        assert cases.learning("paper", "mountaincar", replace(budget, members=members)).members == members
    assert cases.learning("paper", "mountaincar", replace(budget, members=7)).members == 5      # as many as the settings say


def test_a_budget_takes_four_times_its_share_of_the_sweeps():
    budget = cases.BUDGETS["quick", "cartpole"]
    for share, sweeps in ((1.0, 100), (0.25, 100), (0.1, 40), (1e-9, 3)):
        config = cases.learning("best", "cartpole", replace(budget, epochs=share))
        assert config.exact.solver.sweeps == sweeps
        assert replace(config, exact=replace(config.exact, solver=replace(config.exact.solver, sweeps=100))) == \
            cases.LEARNING["best", "cartpole"]


def test_a_policy_plans_with_the_settings_of_its_environment():
    """The true model, the score and the price: only a learned ensemble pays for disagreement."""
    for name in NAMES:
        environment = cases.ENVIRONMENTS[name]
        policy = cases.planning_policy("best", environment, TrueEnv(environment, data.agents(environment, 5, seed=0)))
        assert policy.price is None
        assert policy.planner.keywords["config"] == cases.PLANNING["best", name].planner
        assert policy.planner.keywords["actions"] == environment.actions
    high, low = (torch.full((1, 3, 2), x) for x in (0.4, -0.4))     # two standing cars: only the bonus tells them apart
    still = torch.zeros(1, 2, 1)
    car = cases.ENVIRONMENTS["mountaincar"]
    for settings, bonus in (("paper", 0.5 * 0.8), ("best", 0.0)):
        score = cases.planning_policy(settings, car, TrueEnv(car, data.agents(car, 5, seed=0))).score
        assert float(score(high, still) - score(low, still)) == pytest.approx(bonus)


def test_the_price_is_in_units_of_a_state_difference():
    environment = cases.ENVIRONMENTS["halfcheetah"]
    D, generator = len(environment.state_names), torch.Generator().manual_seed(0)
    state = torch.randn(64, D, generator=generator)
    model = fit_persim(
        Transitions(torch.arange(64) % 5, state, environment.actions.sample((64,), generator=generator),
                    state + torch.arange(1, D + 1) * torch.randn(64, D, generator=generator)),
        5, environment.actions, PerSimConfig(rank=2, members=2, state_hidden=(4,), action_hidden=(4,),
                                             adam=AdamConfig(epochs=1)), seed=0)
    price = cases.PLANNING["best", "halfcheetah"].price
    assert price > 0
    policy = cases.planning_policy("best", environment, model)
    # members that disagree by one unit in every dimension cost the price per step
    assert float((policy.price * model.unit).sum()) == pytest.approx(price, rel=1e-5)
    assert cases.planning_policy("paper", environment, model).price is None


def test_changed_settings_train_anew_and_equal_ones_do_not(tmp_path, monkeypatch):
    cell = Cell("cartpole", "random", "persim", 1, 0, "best", "tiny")
    first = pieces.model_path(tmp_path, cell)
    assert pieces.model_path(tmp_path, replace(cell, agent=5)) == first           # one model serves all agents
    others = [replace(cell, settings="paper"), replace(cell, budget="quick"), replace(cell, seed=1),
              replace(cell, method="pooled"), replace(cell, environment="mountaincar")]
    assert len({first, *(pieces.model_path(tmp_path, other) for other in others)}) == 6
    config = cases.LEARNING["best", "cartpole"]
    monkeypatch.setitem(cases.LEARNING, ("best", "cartpole"), replace(config, rank=config.rank + 1))
    assert pieces.model_path(tmp_path, cell) != first


def test_data_is_shared_by_settings_and_methods_but_not_by_seeds_or_sizes(tmp_path):
    cell = Cell("cartpole", "random", "persim", 1, 0, "best", "quick")
    first = pieces.data_path(tmp_path, cell)
    for same in (replace(cell, settings="paper"), replace(cell, method="pooled"), replace(cell, agent=3)):
        assert pieces.data_path(tmp_path, same) == first
    for other in (replace(cell, seed=1), replace(cell, budget="tiny"), replace(cell, dataset="pure")):
        assert pieces.data_path(tmp_path, other) != first


def test_other_policies_are_other_data_and_other_settings(tmp_path, monkeypatch):
    """They log the data sets but for the random one, and test every simulator."""
    learner = Cell("cartpole", "pure", "persim", 1, 0, "best", "tiny")
    random, planner = replace(learner, dataset="random"), replace(learner, dataset="none", method="true-env-mpc")
    cells = (learner, random, planner)

    def all_of(path):
        return [path(tmp_path, cell) for cell in cells[:2]]
    data_before, models_before = all_of(pieces.data_path), all_of(pieces.model_path)
    settings = [pieces.settings_of(cell) for cell in cells]
    assert fingerprint(cases.ENVIRONMENTS["cartpole"], test=False) in data_before[0].name
    monkeypatch.setattr(pieces, "fingerprint", lambda environment, test: f"other {environment.name}")
    assert [a == b for a, b in zip(all_of(pieces.data_path), data_before, strict=True)] == [False, True]
    assert [a == b for a, b in zip(all_of(pieces.model_path), models_before, strict=True)] == [False, True]
    assert [pieces.same_settings(old, pieces.settings_of(cell)) for cell, old in zip(cells, settings, strict=True)] == [
        False, False, True]
    before = {name: value for name, value in settings[0].items() if name != "policies"}      # by a scripted test policy
    assert not pieces.same_settings(before, settings[0])


@pytest.mark.parametrize(("what", "names"), [("environment", cases.ENVIRONMENTS), ("method", cases.METHODS),
                                             ("data set", cases.BEHAVIOUR), ("budget", cases.BUDGET_NAMES),
                                             ("settings", cases.SETTINGS)])
def test_an_unknown_name_lists_the_known_ones(what, names):
    with pytest.raises(ValueError, match=f"unknown {what} 'nowhere'; known: {', '.join(names)}$"):
        check.known(what, "nowhere", names)


def test_devices():
    assert check.device("cpu") == "cpu"
    for name in ("nowhere", "", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{name}': expected one that torch can use here, got '.+'; use 'cpu'"):
            check.device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="device 'cuda': expected one that torch can use here"):
        check.device("cuda")


def test_agents_that_this_version_does_not_have():
    """As a record of another version, or of a hand, may name them."""
    cell = Cell("mountaincar", "random", "persim", 1, 0, "best", "small")
    assert [cases.knows(replace(cell, agent=agent)) for agent in (0, 1, 5, 6, 10, 11)] == [False, True, True, True, True, False]
