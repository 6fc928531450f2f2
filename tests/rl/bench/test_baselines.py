"""The methods that PerSim is compared with, in the benchmark."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from lowrank_rl.rl.bench import __main__ as bench
from lowrank_rl.rl.bench import baselines, cases, pieces, published, report, run, selection, train
from lowrank_rl.rl.bench.baselines import fit_policy
from lowrank_rl.rl.bench.options import Options
from lowrank_rl.rl.bench.store import Cell, Record, Store
from lowrank_rl.rl.bench.suites import work
from lowrank_rl.rl.bench.tasks import tasks
from lowrank_rl.rl.data import Episodes
from lowrank_rl.rl.evaluate import returns
from lowrank_rl.rl.models.particles import Particles

NAMES = [name for name, method in cases.METHODS.items() if method.baseline]
WORDS = ["--env", "cartpole", "--budget", "tiny", "--agents", "2", "--jobs", "1"]


def test_those_of_the_paper_and_ours_to_beat():
    assert NAMES == ["vanilla-cadm", "pe-ts-cadm", "e-pets", "bcq-p", "bcq-a", "cql-p", "cql-a", "morel-p", "morel-a",
                     "persim-bcq-5", "persim-cql-5"]
    known = {key[3] for key in published.paper_numbers() if key[0] in ("3", "9", "10", "11")}
    assert set(NAMES) - {"e-pets"} <= known
    assert not set(NAMES) & set(cases.methods("best", "cartpole", baselines=False))      # they run when they are named


@pytest.mark.parametrize(("method", "environment"), list(product(NAMES, cases.ENVIRONMENTS)))
def test_budgets_take_their_share_of_the_updates(method, environment):
    def updates(budget):
        config = baselines.learning(Cell(environment, "pure", method, 1, 0, "best", budget))
        return getattr(config, "descent", None) or getattr(config, "policy", None) or config
    counts = [getattr(updates(budget), "updates", None) or updates(budget).steps for budget in cases.BUDGET_NAMES]
    assert counts == sorted(counts)
    assert 2 <= counts[0] < counts[1] < counts[3]


def test_what_is_slow_to_plan_in_flies_fewer_episodes_and_its_settings_say_so():
    def episodes(method, budget):
        cell = Cell("cartpole", "pure", method, 1, 0, "best", budget)
        assert pieces.settings_of(cell)["budget"]["return_episodes"] == baselines.budget_of(cell).return_episodes
        return baselines.budget_of(cell).return_episodes
    assert [episodes(method, "small") for method in ("vanilla-cadm", "pe-ts-cadm", "e-pets", "bcq-p", "persim")] == \
        [3, 3, 3, 20, 20]
    assert [episodes("e-pets", budget) for budget in ("quick", "paper")] == [3, 20]


# persim_reproduction.md, sections 5 to 8, and the paper's appendix D.2
def test_the_papers_settings():
    def learning(method, environment):
        return baselines.learning(Cell(environment, "pure", method, 1, 0, "paper", "paper"))
    assert learning("bcq-p", "cartpole").updates == learning("bcq-a", "halfcheetah").updates == 550_000
    config = learning("cql-a", "mountaincar")
    assert (config.critics, config.alpha, config.batch, config.learning_rate) == (3, 1.0, 512, 1e-4)
    config = learning("cql-p", "halfcheetah")
    assert (config.threshold, config.policy_rate, config.value_rate) == (5.0, 3e-5, 3e-4)
    for environment, penalty, hidden in (("mountaincar", -50, 128), ("cartpole", -50, 128), ("halfcheetah", -200, 1024)):
        config = learning("morel-p", environment)
        assert (config.policy.penalty, config.model.hidden, config.model.members) == (penalty, (hidden, hidden), 4)
    vanilla, ensemble = learning("vanilla-cadm", "cartpole"), learning("pe-ts-cadm", "cartpole")
    assert (vanilla.members, vanilla.probabilistic, ensemble.members, ensemble.probabilistic) == (1, False, 5, True)
    assert ensemble.past == ensemble.future == ensemble.width == 10
    assert ensemble.hidden == (200,) * 4


def test_particles_of_the_paper():
    class Five:
        members, past, noisy = 5, 0, True
    cell = Cell("cartpole", "pure", "pe-ts-cadm", 1, 0, "paper", "paper")
    assert isinstance(baselines.planned(cell, Five()), Particles)
    assert baselines.planned(cell, Five()).members == 20
    for other in (replace(cell, budget="small"), replace(cell, method="e-pets")):
        assert isinstance(baselines.planned(other, Five()), Five)


def test_who_learns_from_whom():
    cell = Cell("cartpole", "pure", "bcq-p", 1, 0, "best", "small")
    assert baselines.runs(cell, 7).tolist() == [0] * 7
    assert baselines.runs(replace(cell, method="cql-a"), 7).tolist() == [0, 1, 2, 3, 4, -1, -1]


@pytest.mark.slow
def test_a_simulator_and_policies_through_one_command(tmp_path, capsys):
    words = [*WORDS, "--methods", "vanilla-cadm", "bcq-a", "cql-p", "--out", str(tmp_path)]
    assert bench.main([*words, "--list"]) == 0
    assert "3 cells; about 0.0" in capsys.readouterr().out
    assert bench.main(words) == 0
    records = {cell.method: record for cell, record in Store(tmp_path).load().items()}
    assert [record.status for record in records.values()] == ["done"] * 3
    assert records["vanilla-cadm"].rmse > 0
    assert "planning" in records["vanilla-cadm"].config
    for method in ("bcq-a", "cql-p"):
        record = records[method]
        assert record.rmse is None
        assert 0.5 <= record.same_action <= 1
        assert "planning" not in record.config
        curve = record.training["curve"]
        assert max(map(int, curve)) == record.training["update"] == record.config["learning"]["updates"]
        assert curve[str(record.training["update"])] == pytest.approx(np.mean(record.returns))     # the same two episodes
    said = capsys.readouterr().out
    assert "Updates of baselines (MOReL: steps of PPO): vanilla-cadm 20, bcq-a 55, cql-p 10" in said
    assert not [path for path in (tmp_path / "models").iterdir() if path.suffix in (".curve", ".checkpoint")]
    path, = (tmp_path / "models").glob("*bcq-a*")
    path.write_bytes(path.read_bytes()[:500])
    assert bench.main(words) == 2
    assert path.name in capsys.readouterr().err


@pytest.mark.parametrize("text", ["garb", "", "[]", '{"x": {}}', '{"1": 2}'])
def test_a_corrupt_curve_is_named(tmp_path, text):
    path = tmp_path / "a.curve"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.curve: expected returns of an unfinished policy, got a corrupt file .*; remove"):
        train._curve(path)


def nobody(*what):
    pass


def killed(words, share):
    if words.startswith("training, update") and share > 0.5:
        raise KeyboardInterrupt


def same(one, two):
    return all(torch.equal(mine, yours) for name, network in one.networks.items()
               for mine, yours in zip(network.parameters(), two.networks[name].parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "call"), [
    ("bcq-a", 0), ("bcq-a", 10), ("persim-cql-5", 9), ("persim-cql-5", 10), ("persim-cql-5", 19), ("persim-cql-5", 20)])
def test_a_killed_training_ends_with_the_same_policy_and_curve(tmp_path, monkeypatch, method, call):
    """Killed when it tells of its progress, or in one of its looks, after an update at which it would be kept."""
    if method == "bcq-a":
        monkeypatch.setattr(pieces, "settings_of", lambda cell: {})
    monkeypatch.setattr("lowrank_rl.rl.policies.offline.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.rl.policies.offline.TOLD", 5)
    config = replace(baselines.POLICIES["cql", "cartpole"], updates=200_000)
    monkeypatch.setitem(baselines.POLICIES, ("cql", "cartpole"), config)
    cell = Cell("cartpole", "random", method, 1, 0, "best", "tiny")
    for name in ("whole", "halves"):
        train.make_data(tmp_path / name, cell, nobody)
        if method != "bcq-a":
            train.train(tmp_path / name, replace(cell, method="persim"), "cpu", nobody)
    train.train(tmp_path / "whole", cell, "cpu", nobody)
    with monkeypatch.context() as patch:
        asked = iter(range(1, call + 1))
        if call:
            patch.setattr(train.evaluate, "returns", lambda *all_of, **them: killed("training, update", 1.0)
                          if next(asked) == call else returns(*all_of, **them))
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path / "halves", cell, "cpu", nobody if call else killed)
    train.train(tmp_path / "halves", cell, "cpu", nobody)
    one, two = (pieces.load_policy(tmp_path / name, cell) for name in ("whole", "halves"))
    assert one.history[-1] == two.history[-1]
    assert len(one.history[-1]["curve"]) == (10 if method == "bcq-a" else 20)
    assert same(one, two)
    assert {path.suffix for path in (tmp_path / "halves" / "models").iterdir()} == {".safetensors"}


@pytest.mark.slow
def test_policies_of_flown_trajectories_are_the_best_in_their_simulators(tmp_path, monkeypatch):
    """Each agent's policy is the one of the look at which it earned most there; ``paper`` keeps the last."""
    looked = []
    monkeypatch.setattr(baselines, "fit_policy", lambda *what, watch, **options: fit_policy(
        *what, watch=lambda done, policy: (looked.append(policy), watch(done, policy)), **options))
    for settings in ("best", "paper"):
        cell = Cell("cartpole", "random", "persim-bcq-5", 1, 0, settings, "tiny")
        train.make_data(tmp_path, cell, nobody)
        train.train(tmp_path, replace(cell, method="persim"), "cpu", nobody)
        train.train(tmp_path, cell, "cpu", nobody)
        policy = pieces.load_policy(tmp_path, cell)
        if settings == "paper":
            assert "imagined" not in policy.history[-1]
            assert len(looked) == 10
            assert same(policy, looked[-1])
            break
        curves = policy.history[-1]
        assert list(curves["imagined"]) == list(curves["curve"]) == [str(math.ceil(55 * k / 20)) for k in range(1, 21)]
        assert "looks" not in policy.history[-2]
        looks = list(curves["imagined"].values())
        places = [max(range(20), key=lambda k, agent=agent: (looks[k][agent], k)) for agent in "01234"]
        assert len(set(places)) > 1
        for name, network in policy.networks.items():
            for agent, place in enumerate(places):
                pairs = zip(network.parameters(), looked[place].networks[name].parameters(), strict=True)
                assert all(torch.equal(mine[agent], theirs[agent]) for mine, theirs in pairs)
        assert "selected" in pieces.settings_of(cell)
        looked.clear()


@pytest.mark.slow
def test_a_policy_is_worth_its_return_in_its_own_simulator(tmp_path, monkeypatch):
    """And nothing where there is none, or the simulator diverges."""
    cell = Cell("cartpole", "random", "persim-bcq-5", 1, 0, "best", "tiny")
    train.make_data(tmp_path, cell, nobody)
    train.train(tmp_path, replace(cell, method="persim"), "cpu", nobody)
    train.train(tmp_path, cell, "cpu", nobody)
    policy, worth = pieces.load_policy(tmp_path, cell), selection.judge(tmp_path, cell)
    whole = worth(policy)
    curves = policy.history[-1]["imagined"]
    assert whole.tolist() == [max(look[agent] for look in curves.values()) for agent in "01234"]
    policy.failed[3] = 17
    predict = pieces.PerSim.predict
    monkeypatch.setattr(pieces.PerSim, "predict", lambda self, context, state, action, generator=None: torch.where(
        context[..., :1] == self.rows[:, 1:2, :1], torch.nan, predict(self, context, state, action, generator)))
    assert worth(policy).tolist() == [whole[0], -math.inf, whole[2], -math.inf, whole[4]]


def test_a_policy_that_always_does_the_same_is_told():
    cells = [Cell("mountaincar", "pure", "cql-a", agent, 0, "best", "small") for agent in (1, 2)]
    config = {"budget": vars(cases.BUDGETS["small", "mountaincar"]), "learning": {"updates": 7}}
    records = {cell: Record(cell, "done", returns=[-500.0], lengths=[500], config=config, same_action=share)
               for cell, share in zip(cells, (1.0, 0.99), strict=True)}
    text = report.notes_text(report.build(cases.ENVIRONMENTS["mountaincar"], cells, records))
    assert "**Always the same action:** mountaincar/pure/cql-a/agent 1/seed 0." in text
    actions = np.array([[0.5, 1.0]] * 3 + [[0.5, 0.9]])
    rows = np.zeros(4)
    assert run._same(Episodes("", "", 0, rows, rows, rows, rows, actions, rows, rows, rows)) == 0.75


@pytest.mark.parametrize(("has", "words"), [(True, "1 thread, bfloat16)"), (False, "1 thread, no bfloat16)")])
def test_records_tell_whether_the_processor_had_bfloat16(monkeypatch, has, words):
    """Settings that ask for it may not have got it."""
    monkeypatch.setattr(run, "has_bfloat16", lambda place: has)
    assert run._device("cpu").endswith(words)


@pytest.mark.slow
def test_flown_trajectories_come_from_persims_simulators(tmp_path):
    asked = work(Options("cartpole", budget="tiny", methods=("persim-bcq-5",), agents=(2,), datasets=("random",)))
    named = {task.name: task for task in tasks({"cartpole": tmp_path}, asked, "cpu")}
    logged = "data cartpole-random-8-seed0"
    assert named["train cartpole/random/persim-bcq-5/seed 0"].needs == {logged, "train cartpole/random/persim/seed 0"}
    assert named["train cartpole/random/persim/seed 0"].needs == {logged}
    assert bench.main([*WORDS, "--methods", "persim-bcq-5", "bcq-a", "--out", str(tmp_path)]) == 0
    records = {cell.method: record for cell, record in Store(tmp_path).load().items()}
    assert set(records["persim-bcq-5"].config["flown"]) == {"learning", "planning", "policies"}
    assert records["persim-bcq-5"].config["learning"] == records["bcq-a"].config["learning"]
    cell = Cell("cartpole", "random", "persim-bcq-5", 2, 0, "best", "tiny")
    more = train._flown(tmp_path, cell, lambda *what: None)
    assert torch.bincount(more.agent, minlength=5).min() >= 5              # five of each test agent
    assert int(more.agent.max()) == 4


def test_numbers_that_only_the_short_tables_have():
    table_2 = published.paper(Cell("mountaincar", "pure", "bcq-p", 1, 0, "best", "small"), "reward")
    table_3 = published.paper(Cell("cartpole", "random", "persim-cql-5", 2, 0, "best", "small"), "reward")
    assert (table_2[0], table_3[0]) == (-67.6, 198.3)


def test_numbers_of_few_agents():
    cell = Cell("mountaincar", "random-of-25", "persim", 4, 0, "best", "small")
    assert published.paper(cell, "reward")[:2] == (-246.8, 39.1)
    assert published.paper(replace(cell, dataset="random-of-250", method="bcq-p"), "reward")[:2] == (-500, 0)
    assert published.paper(replace(cell, environment="cartpole", dataset="pure-of-50", agent=5), "reward")[0] == 182.7
    assert published.paper(cell, "rmse") is None
    for other in ("random-of-10", "pure-of-25"):      # which the paper has not
        assert published.paper(replace(cell, dataset=other), "reward") is None
    assert published.table_of("halfcheetah", "random-of-25", "reward") == "16"
    assert published.table_of("halfcheetah", "random", "rmse") == "8"
