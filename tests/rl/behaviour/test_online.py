"""Training in pieces: it learns, it ends as promised, and a kill after any piece changes no bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from lowrank_rl.rl.behaviour import online, trained
from lowrank_rl.rl.behaviour.online import Recipe, train
from lowrank_rl.rl.bench.cases import ENVIRONMENTS
from lowrank_rl.rl.contracts import Discrete
from lowrank_rl.rl.data import collect
from lowrank_rl.rl.envs import cartpole, halfcheetah
from lowrank_rl.tensor import io

CARTPOLE = cartpole.ENVIRONMENT
CHEETAH = replace(halfcheetah.ENVIRONMENT, max_steps=20)     # evaluations of 20 steps
NEVER = 1e9

DQN = Recipe("DQN", NEVER, NEVER, piece=150, limit=450, episodes=20, explore=(1.0, 0.5, 400), options={
    "learning_rate": 1e-3, "batch_size": 16, "buffer_size": 300, "learning_starts": 50, "train_freq": 4, "gradient_steps": 1,
    "target_update_interval": 30})                           # the buffer is full before the end
TD3 = Recipe("TD3", NEVER, NEVER, piece=80, limit=240, episodes=2, options={
    "learning_rate": 1e-3, "batch_size": 16, "buffer_size": 1000, "learning_starts": 50, "train_freq": 1, "gradient_steps": 1})
BOTH = [pytest.param(CARTPOLE, DQN, id="DQN"),
        pytest.param(CHEETAH, TD3, id="TD3", marks=[pytest.mark.mujoco, pytest.mark.slow])]


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def streams():
    """Stable-Baselines3 draws from the global streams; other tests may not notice."""
    kept, numbers = torch.random.get_rng_state(), np.random.get_state()     # noqa: NPY002
    yield
    torch.random.set_rng_state(kept)
    np.random.set_state(numbers)                                            # noqa: NPY002


def quiet(words, share):
    pass


def to_the_limit(environment, recipe, checkpoint, seed=0):
    """All that there is at the limit, and how often it was killed on the way: after every piece."""
    kills = 0
    while True:
        pieces = 0

        def say(words, share):
            nonlocal pieces, kills
            pieces += 1
            if checkpoint.name == "killed" and pieces == 2:
                kills += 1
                raise Killed
        try:
            net = train(environment, "1", recipe, seed=seed, checkpoint=checkpoint, say=say)
        except Killed:
            continue
        tensors, header = io.load(checkpoint, online.KIND)
        assert net.card["steps"] == header["steps"] >= recipe.limit
        return (tensors, header), kills


@pytest.mark.parametrize(("environment", "recipe"), BOTH)
def test_killed_after_every_piece_it_ends_with_the_same_bits(environment, recipe, tmp_path):
    (whole, header), none = to_the_limit(environment, recipe, tmp_path / "whole")
    (pieces, again), kills = to_the_limit(environment, recipe, tmp_path / "killed")
    assert (none, kills) == (0, 2)
    assert header == again
    assert set(whole) == set(pieces)
    assert [name for name, value in whole.items() if not torch.equal(value, pieces[name])] == []
    assert any(name.startswith(("actor.", "q.")) for name in whole)            # the optimizers' state is there
    assert len({float(row.sum()) for row in whole["buffer.observations"]}) > 100


def test_the_seed_decides(tmp_path):
    (first, _), _ = to_the_limit(CARTPOLE, replace(DQN, limit=150), tmp_path / "first")
    (other, _), _ = to_the_limit(CARTPOLE, replace(DQN, limit=150), tmp_path / "other", seed=1)
    assert not torch.equal(first["buffer.observations"], other["buffer.observations"])


def test_the_first_policy_that_reaches_the_level_is_given(tmp_path):
    """Its card is confirmed by its own evaluation, without the training's code."""
    recipe, said = replace(online.RECIPES["cartpole"], level=30, piece=1024, limit=10_240, episodes=20), []
    net = train(CARTPOLE, "2", recipe, seed=0, checkpoint=tmp_path / "checkpoint",
                say=lambda words, share: said.append((words, share)))
    card = net.card
    assert {name: card[name] for name in ("environment", "purpose", "agent", "algorithm", "level", "episodes", "seed")} == {
        "environment": "cartpole", "purpose": "2", "agent": [14.0, 0.5], "algorithm": "DQN", "level": 30.0, "episodes": 20,
        "seed": 0}
    assert card["mean_return"] >= 30
    assert card["steps"] == 1024 * len(said)
    assert [share for _, share in said] == pytest.approx([0.1 * piece for piece in range(len(said))])
    assert said[0][0] == "step 0, return -inf (to reach: 30)"
    own = torch.tensor([card["agent"]], dtype=torch.float64).expand(200, -1)
    rows = torch.zeros(200, dtype=torch.int64)
    policy = trained.Trained([net], rows[:1], Discrete(2), 0.01)
    found = collect(CARTPOLE, own, rows, policy, seed=5, what="again").returns
    assert abs(found.mean() - card["mean_return"]) < 5 * max(card["sd_return"], 1) * (1 / 200 + 1 / 20) ** 0.5
    trained.save(tmp_path, CARTPOLE, "2", net)
    assert trained.load(tmp_path, CARTPOLE, "2").card == card


def test_the_test_policy_has_its_own_level_and_agent(tmp_path):
    recipe = replace(DQN, level=NEVER, test_level=5.0)           # even a falling pole stands for so long
    card = train(CARTPOLE, "test", recipe, seed=0, checkpoint=tmp_path / "checkpoint", say=quiet).card
    assert (card["level"], card["agent"], card["steps"] >= 150) == (5.0, [10.0, 0.5], True)


def test_at_the_limit_the_last_policy_is_given_and_its_card_says_how_far_it_came(tmp_path):
    recipe = replace(DQN, level=300.0, limit=150)
    card = train(CARTPOLE, "3", recipe, seed=0, checkpoint=tmp_path / "checkpoint", say=quiet).card
    assert (card["level"], card["steps"], card["episodes"]) == (300.0, 152, 20)      # by fours
    assert card["mean_return"] < 300


@pytest.fixture
def checkpoint(tmp_path):
    """Of cartpole 1 after a piece, with seed 0."""
    to_the_limit(CARTPOLE, replace(DQN, limit=150), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("purpose", "seed"), [("2", 0), ("test", 0), ("1", 1)])
def test_a_foreign_checkpoint_is_refused(checkpoint, purpose, seed):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: expected the training of cartpole {purpose} with seed {seed}, got that "
                                         r"of cartpole 1 with seed 0; remove it"):
        train(CARTPOLE, purpose, DQN, seed=seed, checkpoint=checkpoint, say=quiet)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("how", ["cut", "bit", "policy"])
def test_a_corrupt_checkpoint_is_refused(checkpoint, how):
    content = bytearray(checkpoint.read_bytes())
    content[-99] ^= 4
    checkpoint.write_bytes(content[:1000] if how == "cut" else content)
    if how == "policy":
        io.save(checkpoint, trained.KIND, {}, {})
    with pytest.raises(ValueError, match="checkpoint: expected a.* unfinished policy.*, got "):
        train(CARTPOLE, "1", DQN, seed=0, checkpoint=checkpoint, say=quiet)


def test_recipes_are_those_of_the_shipped_policies():
    """PerSim, appendix E: DQN to -200 and 120, TD3 to 3000; tests by better ones."""
    assert {name: (recipe.algorithm, recipe.level) for name, recipe in online.RECIPES.items()} == {
        "mountaincar": ("DQN", -200), "cartpole": ("DQN", 120), "halfcheetah": ("TD3", 3000)}
    for name, recipe in online.RECIPES.items():
        assert recipe.test_level > recipe.level
        for path in trained.SHIPPED.glob(f"{name}-*.safetensors"):
            card = trained.load(trained.SHIPPED, ENVIRONMENTS[name], path.stem.split("-")[1]).card
            level = recipe.test_level if card["purpose"] == "test" else recipe.level
            assert (card["algorithm"], card["level"], card["episodes"]) == (recipe.algorithm, level, recipe.episodes)
