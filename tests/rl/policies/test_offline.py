"""What offline learners share: runs side by side, interruption, failure, files, refusals; on each discrete learner."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Experience, fresh_view
from lowrank_rl.rl.policies import bcq, cql, offline
from lowrank_rl.rl.policies.bcq import BCQConfig, fit_bcq
from lowrank_rl.rl.policies.cql import CQLConfig, fit_cql
from lowrank_rl.rng import stream
from policies.chain import ACTIONS, DISCOUNT, WORLDS, acts, best, walks, weights

TINY = {"batch": 64, "hidden": (16, 16), "learning_rate": 1e-2, "discount": DISCOUNT}
LEARNERS = {
    "bcq": (fit_bcq, BCQConfig(**TINY, updates=400, follow=0.05), bcq),
    "cql": (fit_cql, CQLConfig(**TINY, updates=600, follow=40), cql),
}


@pytest.fixture(params=LEARNERS)
def learner(request):
    return LEARNERS[request.param]


# ---- a learner of nothing but rewards, with noise of its own and a way to fail

@dataclass(frozen=True)
class GuessConfig:
    updates: int = 60
    batch: int = 32
    breaks: tuple[int, int] = (-1, -1)      # the run whose network turns to NaN, and in which update


class Guess:
    def __init__(self, dims, actions, config, seed, runs, device):
        self.config = config
        self.draws = offline.streams(seed, runs, "noise")
        self.modules = {"value": offline.networks((dims, 8, actions), offline.streams(seed, runs, "networks"))}
        self.optimizers = {"adam": torch.optim.Adam(self.modules["value"].parameters(), lr=1e-2, fused=True)}

    def update(self, batch, number):
        run, update = self.config.breaks
        if number == update:
            self.modules["value"].layers[0].weight.data[run] = torch.nan
        noise = torch.stack([torch.randn(1, generator=generator) for generator in self.draws])
        error = self.modules["value"](batch.state).gather(2, batch.action[..., None])[..., 0] - batch.reward - noise
        losses = batch.mean(error.square())
        self.optimizers["adam"].zero_grad()
        losses.sum().backward()
        self.optimizers["adam"].step()
        return losses.detach()

    def acting(self):
        return self.modules


def greedy(networks, state, generators):
    return networks["value"](state[None])[0].argmax(1, keepdim=True)


def fit_guess(data, run, actions, config, *, seed, **options):
    return offline.fit(Guess, greedy, {}, data, run, actions, config, seed=seed, **options)


# ---- learning

def test_the_best_actions_of_either_world_are_found(learner):
    fit, config, _ = learner
    assert [best(0), best(1)] == [[0, 1, 1], [0, 0, 1]]
    policy = fit(walks(), WORLDS, ACTIONS, config, seed=0)
    assert [acts(policy, agent) for agent in (0, 1)] == [best(0), best(1)]


@pytest.mark.parametrize("steps", [(600, 500), (90, 40), (300, 20)])
def test_a_run_learns_the_same_in_any_company(learner, steps):
    fit, config, _ = learner
    data, config = walks(steps), replace(config, updates=40)
    pair = weights(fit(data, WORLDS, ACTIONS, config, seed=3))
    alone = weights(fit(data, torch.tensor([0, -1]), ACTIONS, config, seed=3))
    for name, value in alone.items():
        torch.testing.assert_close(pair[name][:1], value, rtol=1e-4, atol=1e-5)


def test_a_second_run_learns_the_same_in_any_company(learner):
    """Three runs, of which the first two again without the third, and neither has learned what the other has."""
    fit, config, _ = learner
    first, second = walks((200, 90)), walks((30, 30), seed=1)
    data = Experience(*(torch.cat([x, y]) for x, y in zip(vars(first).values(), vars(second).values(), strict=True)))
    data = replace(data, agent=torch.cat([first.agent, second.agent + 2]))
    config = replace(config, updates=40)
    three = weights(fit(data, torch.tensor([0, 1, 2, 2]), ACTIONS, config, seed=3))
    two = weights(fit(data, torch.tensor([0, 1, -1, -1]), ACTIONS, config, seed=3))
    for name, value in two.items():
        torch.testing.assert_close(three[name][:2], value, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value[0], value[1], atol=1e-3)


def test_nothing_is_drawn_from_the_global_generator(learner):
    fit, config, _ = learner
    before = torch.random.get_rng_state()
    fit(walks(), WORLDS, ACTIONS, replace(config, updates=3), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_unfinished_policy_is_shown_ten_times(learner):
    fit, config, _ = learner
    seen = []
    whole = fit(walks(), WORLDS, ACTIONS, replace(config, updates=45), seed=0,
                watch=lambda done, policy: seen.append((done, weights(policy))))
    assert [done for done, _ in seen] == [5, 9, 14, 18, 23, 27, 32, 36, 41, 45]
    short = weights(fit(walks(), WORLDS, ACTIONS, replace(config, updates=14), seed=0))
    assert all(torch.equal(value, seen[2][1][name]) for name, value in short.items())       # and later updates leave it alone
    assert all(torch.equal(value, seen[-1][1][name]) for name, value in weights(whole).items())


# ---- looks that are judged

@pytest.fixture
def thrice(monkeypatch):
    monkeypatch.setattr(offline, "JUDGED", 3)


@pytest.mark.parametrize(("worth", "kept"), [
    ((1.0, -torch.inf, 0.5), 0), ((1.0, 1.0, 0.5), 1), ((torch.nan, torch.nan, -torch.inf), 2)])
def test_each_run_keeps_its_best_look(learner, thrice, worth, kept):
    """Of equal ones the later; the last one where none could be judged."""
    fit, config, _ = learner
    config, seen, told = replace(config, updates=30), [], iter([*zip((1.0, 3.0, 2.0), worth, strict=True)])
    policy = fit(walks(), WORLDS, ACTIONS, config, seed=0, judge=lambda policy: torch.tensor(next(told)),
                 watch=lambda done, policy: seen.append(weights(policy)))
    plain = fit(walks(), WORLDS, ACTIONS, config, seed=0)
    for name, value in weights(policy).items():
        assert torch.equal(value, torch.stack([seen[1][name][0], seen[kept][name][1]]))
        assert torch.equal(seen[2][name], weights(plain)[name])                                # looking changes nothing
    assert not all(torch.equal(value, seen[2][name]) for name, value in seen[1].items())
    known = [None if value != value or value == -torch.inf else value for value in worth]
    assert policy.history[-1] == {"looks": {str(10 * k): [first, second] for k, (first, second) in enumerate(
        zip((1.0, 3.0, 2.0), known, strict=True), 1)}}
    assert [entry["update"] for entry in policy.history[:-1]] == [entry["update"] for entry in plain.history]


def test_a_run_that_diverged_stays_failed_whatever_its_looks(thrice):
    worth = iter([torch.tensor([1.0, 9.0]), torch.tensor([2.0, 8.0]), torch.tensor([1.0, 7.0])])
    policy = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(updates=30, breaks=(1, 25)), seed=0,
                       judge=lambda policy: next(worth))
    assert policy.failed.tolist() == [-1, 26]
    assert [policy.able(agent) for agent in range(len(WORLDS))] == (WORLDS == 0).tolist()
    assert all(parameter[0].isfinite().all() for parameter in policy.networks["value"].parameters())


@pytest.mark.parametrize("word", [1.0, torch.ones(3), torch.ones(2, 1)])
def test_a_judge_has_a_number_for_each_run(word):
    with pytest.raises(ValueError, match="judge: expected a tensor with a number for each of 2 runs, got"):
        fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(), seed=0, judge=lambda policy: word)


# ---- interruption

@pytest.fixture
def often(monkeypatch):
    """Histories grow every 10 updates, and each entry is written."""
    monkeypatch.setattr(offline, "TOLD", 10)
    monkeypatch.setattr(offline, "EVERY", 0.0)


def interrupted(fit, config, file, seed=0):
    def stop(entry):
        if entry["update"] == 40:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fit(walks(), WORLDS, ACTIONS, config, seed=seed, checkpoint=file, progress=stop)
    assert file.exists()


def sums(policy):
    """A judge whose best look is anywhere."""
    return torch.stack([(100 * value).sin().flatten(1).sum(1) for value in weights(policy).values()]).sum(0)


@pytest.mark.parametrize("judge", [None, sums])
@pytest.mark.parametrize("case", [*LEARNERS.values(), (fit_guess, GuessConfig(), None)], ids=[*LEARNERS, "noisy"])
def test_interrupted_training_goes_on_to_the_same_bits(case, judge, often, tmp_path):
    fit, config, _ = (partial(case[0], judge=judge), *case[1:])
    config = replace(config, updates=75, **({"follow": 15} if isinstance(config, CQLConfig) else {}))
    straight = fit(walks(), WORLDS, ACTIONS, config, seed=0)
    interrupted(fit, config, tmp_path / "half")
    heard = []
    resumed = fit(walks(), WORLDS, ACTIONS, config, seed=0, checkpoint=tmp_path / "half", progress=heard.append)
    assert heard[0]["update"] == 40                                       # not from the start
    assert [(x.get("update"), x.get("loss"), x.get("looks")) for x in resumed.history] == \
        [(x.get("update"), x.get("loss"), x.get("looks")) for x in straight.history]
    assert all(torch.equal(value, weights(straight)[name]) for name, value in weights(resumed).items())
    assert not (tmp_path / "half").exists()


def test_unfinished_training_of_another_seed_setting_or_data_is_not_taken_up(often, tmp_path):
    """Nor one whose looks were not judged."""
    config = GuessConfig(updates=75)
    interrupted(fit_guess, config, tmp_path / "half")
    late = fit_guess(walks(), WORLDS, ACTIONS, config, seed=0, checkpoint=tmp_path / "half", judge=sums)
    assert len(late.history[-1]["looks"]) == 20
    for data, settings, seed in ((walks(), config, 1), (walks(), replace(config, batch=16), 0), (walks(seed=1), config, 0)):
        interrupted(fit_guess, config, tmp_path / "half")
        other = fit_guess(data, WORLDS, ACTIONS, settings, seed=seed, checkpoint=tmp_path / "half")
        fresh = fit_guess(data, WORLDS, ACTIONS, settings, seed=seed)
        assert all(torch.equal(value, weights(fresh)[name]) for name, value in weights(other).items())


# ---- failure

def test_a_failed_run_is_marked_and_refused_and_harms_no_other(tmp_path):
    whole = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(), seed=0)
    broken = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(breaks=(1, 6)), seed=0)
    assert broken.failed.tolist() == [-1, 7]
    for name, value in weights(broken).items():
        assert torch.equal(value[0], weights(whole)[name][0])
    broken.save(tmp_path / "policy", "Guess")
    for policy in (broken, offline.Learned.load(tmp_path / "policy", "Guess", greedy)):
        assert acts(policy, 0) == acts(whole, 0)
        with pytest.raises(ValueError, match="agent 1: expected a trained .* NaN or Inf at update 7; train it"):
            policy.reset(torch.tensor([0, 1]))


def test_a_failure_outlives_an_interruption(often, tmp_path):
    config = GuessConfig(updates=75, breaks=(1, 6))
    interrupted(fit_guess, config, tmp_path / "half")
    assert fit_guess(walks(), WORLDS, ACTIONS, config, seed=0, checkpoint=tmp_path / "half").failed.tolist() == [-1, 7]


def test_training_stops_where_all_runs_failed(often):
    heard = []
    policy = fit_guess(walks(), WORLDS * 0, ACTIONS, GuessConfig(updates=500, breaks=(0, 6)), seed=0, progress=heard.append)
    assert heard == policy.history
    assert [(x["update"], x["loss"]) for x in heard] == [(10, None)]


def test_the_loss_told_is_that_of_runs_that_live(often):
    whole = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(), seed=0)
    broken = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(breaks=(1, 6)), seed=0)
    alone = fit_guess(walks(), torch.tensor([0, -1]), ACTIONS, GuessConfig(), seed=0)
    assert [x["loss"] for x in broken.history] == pytest.approx([x["loss"] for x in alone.history], rel=1e-4)
    assert whole.history[-1]["loss"] != pytest.approx(alone.history[-1]["loss"], rel=1e-4)


# ---- files

def test_a_file_gives_back_the_same_policy(learner, tmp_path):
    fit, config, room = learner
    policy = fit(walks(), torch.tensor([0, 1, -1]), ACTIONS, replace(config, updates=30), seed=0)
    policy.save(tmp_path / "policy", room.KIND)
    again = room.load(tmp_path / "policy")
    agent = torch.arange(200) % 2
    state = 4 * torch.rand((200, 2), generator=stream(0), dtype=torch.float64)
    first, second = (p.act(fresh_view(agent, state, 1), generators=[stream(0)] * 200) for p in (policy, again))
    assert torch.equal(first, second)
    assert len(first.unique()) == 2
    assert again.history == policy.history
    with pytest.raises(ValueError, match=r"agent 2: .* there are policies for \[0, 1\]"):
        again.reset(torch.tensor([2]))
    with pytest.raises(ValueError, match="policy"):
        offline.Learned.load(tmp_path / "policy", "another kind", room.choose)


def test_corrupt_and_missing_files_are_refused(learner, tmp_path):
    fit, config, room = learner
    fit(walks(), WORLDS, ACTIONS, replace(config, updates=1), seed=0).save(tmp_path / "policy", room.KIND)
    content = (tmp_path / "policy").read_bytes()
    (tmp_path / "half").write_bytes(content[:len(content) // 2])
    for name in ("half", "none"):
        with pytest.raises(ValueError, match=name):
            room.load(tmp_path / name)


# ---- refusals

@pytest.mark.parametrize(("change", "message"), [
    ({"action": torch.zeros((1100, 1))}, "action: expected 1 components in .* torch.float32"),
    ({"action": torch.full((1100, 1), 2)}, "action: expected 1 components in .* values 2 to 2"),
    ({"reward": torch.full((1100,), torch.nan)}, "reward: 1100 of 1100 values are NaN"),
    ({"next_state": torch.full((1100, 2), torch.inf)}, "next_state: 2200 of 2200 values are NaN or Inf"),
    ({"agent": torch.full((1100,), 2)}, r"agent: expected integers 0\.\.1"),
    ({"agent": torch.zeros(1100, dtype=torch.int64)}, r"run: expected logged steps .* none for run 1 \(of agents \[1\]"),
    ({"state": torch.zeros((1100, 3)).double()}, "axis D is 2"),
    ({"terminated": torch.zeros(7, dtype=torch.bool)}, "terminated: axis B is 7"),
])
def test_bad_logs_are_refused(learner, change, message):
    fit, config, _ = learner
    with pytest.raises(ValueError, match=message):
        fit(replace(walks(), **change), WORLDS, ACTIONS, config, seed=0)


def test_runs_of_nobody_are_refused(learner):
    fit, config, _ = learner
    with pytest.raises(ValueError, match="run: expected logged steps for each, got none for any"):
        fit(walks(), torch.tensor([-1, -1]), ACTIONS, config, seed=0)


def test_continuous_actions_are_refused_where_they_are_whole_numbers():
    data = replace(walks(), action=torch.zeros((1100, 2)))
    with pytest.raises(ValueError, match="action: expected 3 components"):
        fit_guess(data, WORLDS, Box(-1.0, 1.0, 3), GuessConfig(), seed=0)


def test_a_learner_of_discrete_actions_refuses_others(learner):
    fit, config, _ = learner
    logged = walks()
    logged = replace(logged, action=logged.action.double())
    with pytest.raises(ValueError, match="actions: expected Discrete ones, got Box.*; take the learner of continuous actions"):
        fit(logged, torch.zeros(2, dtype=torch.int64), Box(0.0, 5.0, 1), config, seed=0)


def test_an_unknown_agent_is_refused():
    policy = fit_guess(walks(), WORLDS, ACTIONS, GuessConfig(updates=1), seed=0)
    with pytest.raises(ValueError, match=r"agent: expected integers 0\.\.1, got values 5\.\.5"):
        policy.reset(torch.tensor([5]))
