"""Discrete BCQ's target and loss, number by number; what it learns is tested in test_offline.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.bcq import BCQ, BCQConfig, choose
from lowrank_rl.rng import stream
from policies.by_hand import ACTIONS, B, D, G, batch, huber, log_sum, outputs, shaken

CONFIG = BCQConfig(hidden=(5, 4), threshold=0.6, discount=0.9, logits=0.1)


def learner(config=CONFIG):
    made = BCQ(D, ACTIONS, config, 0, G, "cpu")
    for seed, module in enumerate(made.modules.values()):
        shaken(module, seed)
    return made


def allowed(logits, threshold):
    chance = np.exp(logits) / np.exp(logits).sum()
    return [a for a in range(ACTIONS) if chance[a] / chance.max() >= threshold]


def target(made, given, g, i):
    value, imitation, slow = (outputs(made.modules[name], g, given.next_state[g, i])
                              for name in ("value", "imitation", "target"))
    best = max(allowed(imitation, made.config.threshold), key=lambda a: value[a])
    return given.reward[g, i] + (made.config.discount * slow[best] if given.going[g, i] else 0), best, int(value.argmax())


def test_targets_are_those_of_a_loop():
    made, given = learner(), batch()
    rows = [[target(made, given, g, i) for i in range(B)] for g in range(G)]
    expected = torch.tensor([[float(y) for y, _, _ in row] for row in rows])
    torch.testing.assert_close(made.target(given), expected, rtol=1e-5, atol=1e-5)
    assert any(best != greedy for row in rows for _, best, greedy in row)       # the logs forbid some
    assert 0 < given.going.mean() < 1


def test_targets_stay_where_rewards_can_add_up_to_them():
    """With rewards from -0.5 to 0.2 and discount 0.9: following values from -5 to 2. Nothing is cut without a discount."""
    made, given = learner(), replace(batch(), extremes=torch.tensor([[-0.5, 0.2]]).expand(G, 2))
    with torch.no_grad():
        for layer in made.modules["target"].layers:
            layer.weight.mul_(3)
    free = made.target(replace(given, extremes=torch.tensor([[-1e6, 1e6]]).expand(G, 2)))
    following = (free - given.reward) / 0.9
    assert (following < -5).any()
    assert (following > 2).any()
    torch.testing.assert_close(made.target(given), given.reward + 0.9 * following.clamp(-5, 2), rtol=1e-5, atol=1e-5)
    endless = learner(replace(CONFIG, discount=1.0))
    endless.modules = made.modules
    torch.testing.assert_close(endless.target(given), given.reward + following, rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_a_loop():
    made, given = learner(), batch()
    for g, loss in enumerate(made.losses(given).tolist()):
        expected = 0.0
        for i in range(B):
            state, action = given.state[g, i], int(given.action[g, i])
            logits = outputs(made.modules["imitation"], g, state)
            error = outputs(made.modules["value"], g, state)[action] - target(made, given, g, i)[0]
            imitated = log_sum(logits) - logits[action] + 0.1 * (logits ** 2).mean()
            expected += float(given.weight[g, i]) * (huber(float(error)) + imitated)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_a_threshold_of_0_is_greedy_and_of_1_imitates():
    networks = {name: Mlp(1, (D, 8, ACTIONS), "relu", generator=stream(0, name)).double() for name in ("value", "imitation")}
    state = torch.randn((50, D), generator=stream(1), dtype=torch.float64)
    for threshold, name in ((0.0, "value"), (1.0, "imitation")):
        expected = networks[name](state[None])[0].argmax(1, keepdim=True)
        assert torch.equal(choose(networks, state, [], threshold=threshold), expected)
        assert len(expected.unique()) > 1


def test_an_update_steps_by_adam_and_moves_the_target_a_share_of_the_way():
    made, given = learner(replace(CONFIG, follow=0.25)), batch()
    before = {name: [p.detach().clone() for p in module.parameters()] for name, module in made.modules.items()}
    gradient = torch.autograd.grad(made.losses(given).sum(), list(made.modules["value"].parameters()))
    made.update(given, 0)
    after = (made.modules[name].parameters() for name in ("value", "target"))
    for old, slow, slope, new, moved in zip(before["value"], before["target"], gradient, *after, strict=True):
        expected = old - CONFIG.learning_rate * slope / (slope.abs() + 1e-8)      # Adam's first step
        torch.testing.assert_close(new.detach(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(moved.detach(), slow + 0.25 * (new.detach() - slow), rtol=0, atol=1e-6)


def test_runs_start_from_networks_of_their_own():
    made = BCQ(D, ACTIONS, CONFIG, 0, 3, "cpu")
    weight = made.modules["value"].layers[0].weight
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(weight[:2], BCQ(D, ACTIONS, CONFIG, 0, 2, "cpu").modules["value"].layers[0].weight)
    assert torch.equal(weight, made.modules["target"].layers[0].weight)
    assert not torch.equal(weight, made.modules["imitation"].layers[0].weight)


@pytest.mark.parametrize(("name", "wrong"), [("updates", 0), ("batch", 0), ("batch", 1.5), ("learning_rate", 0.0),
                                             ("learning_rate", float("nan")), ("discount", 1.1), ("follow", -0.1),
                                             ("threshold", 2.0)])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        BCQConfig(**{name: wrong})


def test_following_moves_a_share():
    slow, fast = (Mlp(1, (2, 2), "relu", generator=stream(seed)) for seed in (0, 1))
    expected = 0.7 * slow.layers[0].weight.detach() + 0.3 * fast.layers[0].weight.detach()
    offline.follow(slow, fast, 0.3)
    torch.testing.assert_close(slow.layers[0].weight.detach(), expected)
