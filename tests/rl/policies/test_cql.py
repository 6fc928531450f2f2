"""Discrete CQL's target and loss, number by number; what it learns is tested in test_offline.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.policies.batches import Distinct
from lowrank_rl.rl.policies.cql import CQL, CQLConfig, choose
from lowrank_rl.rng import stream
from policies.by_hand import ACTIONS, B, D, G, batch, huber, log_sum, outputs, shaken

CONFIG = CQLConfig(hidden=(5, 4), discount=0.9, alpha=1.5)


def learner(config=CONFIG):
    made = CQL(D, ACTIONS, config, 0, G, "cpu")
    for seed, module in enumerate(made.modules.values()):
        shaken(module, seed)
    return made


def critics(made, name, g, state):
    return np.stack([outputs(network, g, state) for network in made.modules[name]])


def liked(made, given, g, i):
    return int(critics(made, "value", g, given.next_state[g, i]).mean(0).argmax())


def target(made, given, g, i):
    following = critics(made, "target", g, given.next_state[g, i])[:, liked(made, given, g, i)].min()
    return float(given.reward[g, i] + (made.config.discount * following if given.going[g, i] else 0))


def test_targets_are_those_of_a_loop():
    made, given = learner(), batch()
    expected = torch.tensor([[target(made, given, g, i) for i in range(B)] for g in range(G)])
    torch.testing.assert_close(made.target(given), expected, rtol=1e-5, atol=1e-5)
    assert len({liked(made, given, g, i) for g in range(G) for i in range(B)}) > 1


def test_losses_are_those_of_a_loop():
    made, given = learner(), batch()
    for g, loss in enumerate(made.losses(given).tolist()):
        expected = 0.0
        for i in range(B):
            action, value = int(given.action[g, i]), critics(made, "value", g, given.state[g, i])
            errors = sum(huber(x - target(made, given, g, i)) for x in value[:, action])
            excess = log_sum(value.mean(0)) - value.mean(0)[action]
            expected += float(given.weight[g, i]) * (errors + 1.5 * excess)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_distinct_states_change_no_loss_or_gradient_whatever_was_copied_before():
    given = batch()
    way = torch.randn((G, B + 1, D), generator=stream(3))
    given = replace(given, state=way[:, :-1], next_state=way[:, 1:])
    short = replace(given, distinct=Distinct.of(given.state, given.next_state))
    other = replace(given, distinct=Distinct.of(given.state + 1, given.next_state + 1), state=given.state + 1,
                    next_state=given.next_state + 1)
    one, two = learner(replace(CONFIG, follow=3)), learner(replace(CONFIG, follow=3))
    for number in range(7):      # copies are taken after the third and the sixth
        two.target(other)        # other states are looked at in between
        torch.testing.assert_close(two.target(short), one.target(given))
        torch.testing.assert_close(two.update(short, number), one.update(given, number))
    for a, b in zip(one.modules["value"].parameters(), two.modules["value"].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_targets_are_copied_after_every_so_many_updates():
    made, given = learner(replace(CONFIG, follow=3)), batch()
    copied = []
    for number in range(7):
        made.update(given, number)
        pairs = zip(made.modules["target"].parameters(), made.modules["value"].parameters(), strict=True)
        copied.append(all(torch.equal(slow, fast) for slow, fast in pairs))
    assert copied == [False, False, True, False, False, True, False]


def test_an_update_is_a_step_of_adam():
    made, given = learner(), batch()
    before = [p.detach().clone() for p in made.modules["value"].parameters()]
    gradient = torch.autograd.grad(made.losses(given).sum(), list(made.modules["value"].parameters()))
    made.update(given, 0)
    for old, new, slope in zip(before, made.modules["value"].parameters(), gradient, strict=True):
        torch.testing.assert_close(new.detach(), old - 1e-4 * slope / (slope.abs() + 1e-8), rtol=0, atol=1e-6)


def test_critics_and_runs_start_from_networks_of_their_own():
    made = CQL(D, ACTIONS, CONFIG, 0, 3, "cpu")
    rows = torch.cat([network.layers[0].weight for network in made.modules["value"]])
    assert len(rows.flatten(1).unique(dim=0)) == 9
    fewer = CQL(D, ACTIONS, CONFIG, 0, 2, "cpu")
    for network, other, slow in zip(made.modules["value"], fewer.modules["value"], made.modules["target"], strict=True):
        assert torch.equal(network.layers[0].weight[:2], other.layers[0].weight)
        assert torch.equal(network.layers[0].weight, slow.layers[0].weight)


def test_the_mean_of_the_critics_chooses():
    networks = {f"value {c}": Mlp(1, (D, 8, ACTIONS), "relu", generator=stream(c)).double() for c in range(3)}
    state = torch.randn((50, D), generator=stream(9), dtype=torch.float64)
    each = [np.array([outputs(network, 0, s) for s in state]) for network in networks.values()]
    found = choose(networks, state, [])[:, 0].tolist()
    assert found == np.mean(each, axis=0).argmax(1).tolist()
    assert all(found != value.argmax(1).tolist() for value in each)


@pytest.mark.parametrize(("name", "wrong"), [("updates", 0), ("batch", 0), ("critics", 0), ("follow", 0.5),
                                             ("learning_rate", 0.0), ("discount", 1.1), ("alpha", -1.0),
                                             ("alpha", float("nan"))])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        CQLConfig(**{name: wrong})
