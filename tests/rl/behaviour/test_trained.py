"""Trained policies: networks against NumPy, who gets which, files, and what the shipped ones do."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins import network

from lowrank_rl.rl.behaviour import trained
from lowrank_rl.rl.behaviour.trained import Network, Trained, data_policy, load, nearest, save
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.cards import paper_numbers
from lowrank_rl.rl.contracts import Box, Discrete, fresh_view
from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar
from lowrank_rl.rng import stream

CARTPOLE, MOUNTAINCAR, HALFCHEETAH = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT, halfcheetah.ENVIRONMENT
ALL = [MOUNTAINCAR, CARTPOLE, HALFCHEETAH]
SHIPPED = [pytest.param(e, purpose, marks=[pytest.mark.mujoco] * (e is HALFCHEETAH), id=f"{e.name}-{purpose}")
           for e in ALL for purpose in trained.purposes(e)]
LIMITS = {"mountaincar": 500_000, "cartpole": 300_000, "halfcheetah": 400_000}      # steps at which training ended anyway
EACH = [pytest.param(e, marks=[pytest.mark.mujoco] * (e is HALFCHEETAH), id=e.name) for e in ALL]


def by_hand(net, state):
    """Two layers, one row at a time."""
    (w1, w2), (b1, b2) = ([x.double().numpy() for x in part] for part in (net.weights, net.biases))
    return np.array([np.maximum(row @ w1 + b1, 0) @ w2 + b2 for row in state.numpy()])


def act(policy, agent, state, seed=0):
    policy.reset(agent)
    streams = [stream(seed, row) for row in range(len(agent))]
    return policy.act(fresh_view(agent, state, policy.actions.size), generators=streams)


def one(net, actions, explore=0.0, count=1):
    return Trained([net], torch.zeros(count, dtype=torch.int64), actions, explore)


def states(count, D):
    return torch.randn((count, D), generator=stream(0, "states"), dtype=torch.float64)


# ---- what a network says, and what is done about it


def test_a_network_is_two_layers_and_a_rectifier():
    net, state = network(4, 3), states(50, 4)
    found, expected = net(state), by_hand(net, state)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (expected < 0).any()                                  # no rectifier behind the last layer


def test_discrete_actions_are_those_of_the_greatest_value():
    net, state = network(4, 3, seed=1), states(60, 4)
    found = act(one(net, Discrete(3)), torch.zeros(60, dtype=torch.int64), state)
    assert found.dtype == torch.int64
    assert found[:, 0].tolist() == by_hand(net, state).argmax(1).tolist()
    assert len(found.unique()) == 3


def test_continuous_actions_fill_the_bounds_through_tanh():
    net, state = network(4, 2), states(60, 4)
    found = act(one(net, Box(-2.0, 5.0, 2)), torch.zeros(60, dtype=torch.int64), state)
    np.testing.assert_allclose(found.numpy(), 1.5 + 3.5 * np.tanh(by_hand(net, state)), rtol=1e-6, atol=1e-6)
    far = act(one(net, Box(-2.0, 5.0, 2)), torch.zeros(60, dtype=torch.int64), 1e6 * state)
    assert set(far.unique().tolist()) == {-2.0, 5.0}             # and never beyond


@pytest.mark.parametrize("explore", [0.01, 0.3, 1.0])
def test_the_share_of_uniform_actions(explore):
    count, n = 20_000, 3
    always = Network((torch.zeros(2, n),), (torch.tensor([0.0, 1.0, 0.0]),), {})
    found = act(one(always, Discrete(n), explore), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2))[:, 0]
    for action in range(n):
        expected = explore / n + (1 - explore) * (action == 1)
        share = float((found == action).double().mean())
        assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


def test_uniform_continuous_actions_spread_over_the_bounds():
    found = act(one(network(2, 2), Box(-2.0, 5.0, 2), 1.0), torch.zeros(4000, dtype=torch.int64), torch.zeros(4000, 2))
    for column in found.T:
        counts = np.histogram(column, bins=4, range=(-2, 5))[0]
        assert abs(counts / 1000 - 1).max() < 5 * (3 / 4000) ** 0.5     # sd of a share of 1/4, relative


def test_each_agent_has_its_own_network():
    sure = [Network((torch.zeros(2, 4),), (torch.eye(4)[k],), {}) for k in range(4)]
    which = torch.tensor([2, 0, 3, 2, 1])
    agent = torch.tensor([4, 0, 0, 2, 1, 3])
    found = act(Trained(sure, which, Discrete(4)), agent, states(6, 2))
    assert found[:, 0].tolist() == [1, 2, 2, 3, 0, 2]


def test_exploring_rows_draw_from_their_own_streams():
    """The same row says the same, whoever is beside it and wherever it stands."""
    policy = one(network(3, 4, hidden=(64,)), Discrete(4), 0.5)
    state, streams = states(9, 3), [stream(1, row) for row in range(9)]
    agent = torch.zeros(9, dtype=torch.int64)
    whole = policy.act(fresh_view(agent, state, 1), generators=streams)
    order = torch.tensor([7, 2, 5])
    streams = [stream(1, row) for row in order.tolist()]
    assert torch.equal(policy.act(fresh_view(agent[:3], state[order], 1), generators=streams), whole[order])


@pytest.mark.parametrize("agent", [-1, 5])
def test_an_agent_out_of_range_is_refused(agent):
    with pytest.raises(ValueError, match=rf"agent: expected integers 0\.\.4, got values {agent}\.\.{agent}"):
        one(network(2, 2), Discrete(2), count=5).reset(torch.tensor([agent]))


def test_a_network_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"which: expected integers 0\.\.0, got values 0\.\.1"):
        Trained([network(2, 2)], torch.tensor([0, 1]), Discrete(2))


# ---- the nearest policy-training agent


@pytest.mark.parametrize("environment", EACH)
def test_nearest_is_that_of_a_slow_loop(environment):
    covariates = agents(environment, 300, seed=0)[5:]            # the test agents may be equally close to several
    ranges = [high - low for low, high in zip(environment.covariate_low, environment.covariate_high, strict=True)]
    expected = []
    for agent in covariates.tolist():
        squares = [sum(((x - y) / r) ** 2 for x, y, r in zip(agent, other, ranges, strict=True))
                   for other in environment.policy_training_agents]
        expected.append(squares.index(min(squares)))
    assert nearest(environment, covariates).tolist() == expected
    assert set(expected) == set(range(len(environment.policy_training_agents)))


def test_a_wide_range_does_not_hide_a_narrow_one():
    """A pole of 0.83 m, pushed by 12.1 N: 14 N is nearer than 10 N, but then 0.5 m is far away."""
    agent = torch.tensor([[12.1, 0.83]])
    assert CARTPOLE.policy_training_agents[int(nearest(CARTPOLE, agent))] == (10.0, 0.675)
    raw = [abs(12.1 - force) + abs(0.83 - length) for force, length in CARTPOLE.policy_training_agents]
    assert CARTPOLE.policy_training_agents[int(np.argmin(raw))] == (14.0, 0.5)


def test_of_equally_close_agents_the_first_is_taken():
    """HalfCheetah's test agent 5 is as far from each; rounding errors must not decide, nor the others in the data set."""
    default = torch.tensor([HALFCHEETAH.default_agent])
    assert nearest(HALFCHEETAH, default).tolist() == [0]
    assert nearest(HALFCHEETAH, default.expand(50, -1)).tolist() == [0] * 50
    assert [nearest(e, torch.tensor([agent])).item() for e in ALL for agent in e.policy_training_agents] == [
        *range(5), *range(5), *range(4)]


# ---- files


@pytest.fixture
def folder(tmp_path):
    """A policy of cartpole 1."""
    card = {"environment": "cartpole", "purpose": "1", "agent": list(CARTPOLE.policy_training_agents[0])}
    save(tmp_path, CARTPOLE, "1", network(4, 2, card=card))
    return tmp_path


def test_a_saved_policy_comes_back(folder):
    back, state = load(folder, CARTPOLE, "1"), states(20, 4)
    assert torch.equal(back(state), network(4, 2)(state))
    assert back.card["agent"] == [6.0, 0.5]
    assert [path.name for path in folder.iterdir()] == ["cartpole-1.safetensors"]


def test_a_missing_policy_is_refused(folder):
    with pytest.raises(ValueError, match=r"cartpole-2.safetensors: expected a saved policy, got no such file"):
        load(folder, CARTPOLE, "2")
    for ask in (lambda: data_policy(CARTPOLE, torch.zeros(3, 2), folder=folder), lambda: trained.tester(CARTPOLE, 3, folder)):
        with pytest.raises(ValueError, match="expected a saved policy, got no such file"):
            ask()


@pytest.mark.parametrize("how", ["cut", "one bit"])
def test_a_corrupt_policy_is_refused(folder, how):
    path = trained.path_of(folder, CARTPOLE, "1")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content[:-9] if how == "cut" else content)
    with pytest.raises(ValueError, match=r"cartpole-1.safetensors: expected a saved policy, got a corrupt or truncated file"):
        load(folder, CARTPOLE, "1")


@pytest.mark.parametrize(("environment", "purpose"), [
    (MOUNTAINCAR, "1"), (CARTPOLE, "2"), (CARTPOLE, "test"),
    (replace(CARTPOLE, policy_training_agents=((6.0, 0.4),)), "1"),
    (replace(CARTPOLE, state_names=("x", "x_dot", "theta")), "1"),
    (replace(CARTPOLE, actions=Discrete(3)), "1")],
    ids=["environment", "purpose", "test", "agent", "state", "actions"])
def test_a_policy_for_something_else_is_refused(folder, environment, purpose):
    there = trained.path_of(folder, environment, purpose)
    if not there.exists():
        shutil.copy(trained.path_of(folder, CARTPOLE, "1"), there)
    with pytest.raises(ValueError, match=r"expected a policy for .* \(environment, purpose, agent, inputs, outputs\), got .*"
                                         r"train it anew: python -m lowrank_rl.rl.bench.policies --env " + environment.name):
        load(folder, environment, purpose)


def test_a_fingerprint_changes_with_any_weight_of_any_policy_of_its_kind(tmp_path_factory):
    def mark(change):
        copy = tmp_path_factory.mktemp("copy")                   # a fingerprint is remembered by folder
        for purpose in trained.purposes(CARTPOLE):
            shutil.copy(trained.path_of(trained.SHIPPED, CARTPOLE, purpose), copy)
        change(copy)
        return trained.fingerprint(CARTPOLE, False, copy), trained.fingerprint(CARTPOLE, True, copy)

    def touch(purpose):
        def change(copy):
            net = load(copy, CARTPOLE, purpose)
            bias = net.biases[-1].clone()
            bias[0] += 1e-3
            save(copy, CARTPOLE, purpose, replace(net, biases=(*net.biases[:-1], bias)))
        return change
    same, first, last, tester = (mark(change) for change in (lambda copy: None, touch("1"), touch("5"), touch("test")))
    assert same == (trained.fingerprint(CARTPOLE, False), trained.fingerprint(CARTPOLE, True))
    assert len({same[0], first[0], last[0]}) == 3
    assert tester[0] == same[0] != same[1]
    assert same[1] == first[1] == last[1] != tester[1]
    assert mark(lambda copy: save(copy, MOUNTAINCAR, "1", network(2, 3))) == same          # another environment's
    with pytest.raises(ValueError, match="no such file"):
        mark(lambda copy: trained.path_of(copy, CARTPOLE, "3").unlink())


# ---- the shipped ones


def test_there_is_a_policy_for_every_training_agent_and_one_for_tests():
    assert trained.purposes(CARTPOLE) == ["1", "2", "3", "4", "5", "test"]
    assert trained.purposes(HALFCHEETAH) == ["1", "2", "3", "4", "test"]
    assert trained.agent_of(CARTPOLE, "test") == (10.0, 0.5)
    assert trained.agent_of(CARTPOLE, "4") == (10.0, 0.675)
    wanted = {f"{e.name}-{purpose}.safetensors" for e in ALL for purpose in trained.purposes(e)}
    assert {path.name for path in trained.SHIPPED.glob("*.safetensors")} == wanted


@pytest.mark.parametrize(("environment", "purpose"), SHIPPED)
def test_a_shipped_policy_does_what_its_card_says(environment, purpose):
    net = load(trained.SHIPPED, environment, purpose)
    card, episodes = net.card, 8 if environment is HALFCHEETAH else 100
    explore = 0.01 if isinstance(environment.actions, Discrete) else 0.0
    own = torch.tensor([card["agent"]], dtype=torch.float64).expand(episodes, -1)
    found = collect(environment, own, torch.zeros(episodes, dtype=torch.int64), one(net, environment.actions, explore),
                    seed=1, what="card").returns
    error = card["sd_return"] * (1 / episodes + 1 / card["episodes"]) ** 0.5
    assert abs(found.mean() - card["mean_return"]) <= 5 * error
    assert card["mean_return"] >= card["level"] or card["steps"] >= LIMITS[environment.name]
    assert len(net.weights) == 3                                 # two hidden layers of 256, as in the paper's code
    assert [len(bias) for bias in net.biases[:-1]] == [256, 256]


@pytest.mark.parametrize("environment", EACH)
def test_data_policies_are_the_nearest_agents_and_the_tester_everybodys(environment):
    covariates, shown = agents(environment, 40, seed=0), environment.reset(40, generator=stream(0))
    policy = data_policy(environment, covariates)
    for number, state in enumerate(shown):
        own = load(trained.SHIPPED, environment, str(1 + int(nearest(environment, covariates[number:number + 1]))))
        assert torch.equal(policy.networks[policy.which[number]](state[None]), own(state[None]))
    tester = trained.tester(environment, 40)
    assert len(tester.networks) == 1
    assert torch.equal(tester.networks[0](shown), load(trained.SHIPPED, environment, "test")(shown))
    assert [tester.explore, policy.explore] == pytest.approx([0.0 if isinstance(environment.actions, Box) else 0.01] * 2)


@pytest.mark.parametrize("environment", EACH)
@pytest.mark.parametrize(("dataset", "share"), [("pure", 0.0), ("pure-eps-20", 0.2), ("pure-eps-40", 0.4)])
def test_the_share_of_logged_actions_that_are_not_the_policys(environment, dataset, share):
    """pure-eps: uniform with chance ``share``, otherwise as pure, whose own share of uniform actions is 1% for DQN."""
    count = 40
    covariates = agents(environment, count, seed=3)
    found = collect(environment, covariates, torch.arange(count), cases.BEHAVIOUR[dataset](environment, covariates), seed=3,
                    what=dataset, max_steps=200)
    greedy = data_policy(environment, covariates)
    greedy.explore = 0.0
    rows = torch.from_numpy(np.repeat(found.agent, found.lengths))
    own = greedy.act(fresh_view(rows, torch.from_numpy(found.state), environment.actions.size), generators=[])
    differs = (own.numpy() != found.action).any(1)
    discrete = isinstance(environment.actions, Discrete)
    uniform = 1 - (1 - share) * 0.99 if discrete else share
    expected = uniform * (environment.actions.n - 1) / environment.actions.n if discrete else uniform
    assert abs(differs.mean() - expected) <= 5 * (expected * (1 - expected) / len(differs)) ** 0.5


def test_the_same_seed_logs_the_same_data():
    covariates = agents(CARTPOLE, 20, seed=0)

    def log(seed):
        policy = data_policy(CARTPOLE, covariates, share=0.4)
        return collect(CARTPOLE, covariates, torch.arange(20), policy, seed=seed, what="x")
    first, again, other = log(0), log(0), log(1)
    assert np.array_equal(first.state, again.state)
    assert np.array_equal(first.action, again.action)
    assert not np.array_equal(first.state[:20], other.state[:20])


@pytest.mark.slow
@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE], ids=lambda e: e.name)
def test_returns_of_logged_data_are_near_the_papers(environment):
    """Table 5's average returns, of other networks: within a fifth, and falling as more actions are random."""
    found = []
    for dataset in ("pure", "pure-eps-20", "pure-eps-40", "random"):
        covariates = agents(environment, 500, seed=0)
        policy = cases.BEHAVIOUR[dataset](environment, covariates)
        found.append(collect(environment, covariates, torch.arange(500), policy, seed=0, what=dataset).returns.mean())
        paper = paper_numbers()[environment.name, dataset][5]
        assert abs(found[-1] - paper) < 0.2 * abs(paper)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("environment", EACH)
def test_the_table_of_cards_says_what_the_cards_say(environment):
    head, rule, *rows = (line.strip("|").split("|") for line in trained.cards(environment).splitlines())
    assert {len(row) for row in (head, rule, *rows)} == {9}
    for purpose, row in zip(trained.purposes(environment), rows, strict=True):
        card, cells = load(trained.SHIPPED, environment, purpose).card, [cell.strip() for cell in row]
        assert cells[0] == f"{environment.name} {purpose}"
        assert [float(part.split()[1]) for part in cells[1].split(", ")] == pytest.approx(card["agent"])
        assert cells[2] == card["algorithm"]
        assert [float(cell) for cell in cells[3:]] == pytest.approx(
            [card[name] for name in ("steps", "mean_return", "sd_return", "episodes", "level", "seed")], abs=0.051)


@pytest.mark.parametrize("environment", EACH)
def test_the_page_beside_the_weights_shows_their_cards(environment):
    assert trained.cards(environment) in (trained.SHIPPED / "README.md").read_text()
