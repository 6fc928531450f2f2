"""Discrete BCQ and CQL beside d3rlpy's: the same weights and batches, so the same targets, losses, steps and actions.

Needs d3rlpy, which wants an old Gymnasium: ``make witness`` runs it in an environment of its own.
Known differences, each tested or set aside here: d3rlpy prices BCQ's normalised logits, we the raw ones as BCQ's authors do;
it copies BCQ's target network now and then, we follow slowly as they do; its first copy is after the first update.
"""

from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.policies import bcq, cql
from lowrank_rl.rl.policies.bcq import BCQ, BCQConfig
from lowrank_rl.rl.policies.cql import CQL, CQLConfig
from policies.by_hand import ACTIONS, B, D, G, batch, shaken

d3rlpy = pytest.importorskip("d3rlpy")

HIDDEN, UPDATES = (7, 5), 3
SAME = {"batch_size": B, "learning_rate": 1e-3, "gamma": 0.9}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def given():
    """A batch of even weight, as d3rlpy knows no other."""
    found = batch()
    return replace(found, weight=torch.full_like(found.weight, 1 / B))


def theirs(found, g):
    """Run g's batch for d3rlpy."""
    columns = {"actions": found.action, "next_actions": found.action, "rewards": found.reward, "returns_to_go": found.reward,
               "terminals": 1 - found.going, "intervals": torch.ones_like(found.reward)}
    return d3rlpy.torch_utility.TorchMiniBatch(
        observations=found.state[g], next_observations=found.next_state[g], device="cpu",
        **{name: values[g, :, None] for name, values in columns.items()})


def implementation(config, **options):
    """What d3rlpy's algorithm computes with."""
    encoder = d3rlpy.models.encoders.VectorEncoderFactory(list(HIDDEN))
    algorithm = config(**SAME, encoder_factory=encoder, target_update_interval=10**9, **options).create(device="cpu:0")
    algorithm.create_impl((D,), ACTIONS)
    return algorithm.impl


def put(network, member, module):
    """Our member's weights into their layers."""
    linear = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for ours, layer in zip(network.layers, linear, strict=True):
            layer.weight.copy_(ours.weight[member].T)
            layer.bias.copy_(ours.bias[member, 0])


def same(network, member, module):
    linear = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    for ours, layer in zip(network.layers, linear, strict=True):
        torch.testing.assert_close(ours.weight[member].T, layer.weight, **TOLERANCE)
        torch.testing.assert_close(ours.bias[member, 0], layer.bias, **TOLERANCE)


def our_bcq(logits):
    made = BCQ(D, ACTIONS, BCQConfig(hidden=HIDDEN, learning_rate=1e-3, discount=0.9, threshold=0.6, logits=logits, follow=0),
               0, G, "cpu")
    for seed, module in enumerate(made.modules.values()):
        shaken(module, seed)
    return made


def their_bcq(made, g):
    impl = implementation(d3rlpy.algos.DiscreteBCQConfig, beta=made.config.logits, action_flexibility=made.config.threshold,
                          share_encoder=False)
    for name, module in zip(("value", "target", "imitation"), bcq_modules(impl), strict=True):
        put(made.modules[name], g, module)
    return impl


def bcq_modules(impl):
    return impl.modules.q_funcs[0], impl.modules.targ_q_funcs[0], impl.modules.imitator


def our_cql():
    made = CQL(D, ACTIONS, CQLConfig(hidden=HIDDEN, learning_rate=1e-3, discount=0.9, alpha=1.5), 0, G, "cpu")
    for seed, module in enumerate(made.modules.values()):
        shaken(module, seed)
    return made


def their_cql(made, g):
    impl = implementation(d3rlpy.algos.DiscreteCQLConfig, n_critics=made.config.critics, alpha=made.config.alpha)
    for name, modules in (("value", impl.modules.q_funcs), ("target", impl.modules.targ_q_funcs)):
        for network, module in zip(made.modules[name], modules, strict=True):
            put(network, g, module)
    return impl


PAIRS = {"bcq": (lambda: our_bcq(0.0), their_bcq), "cql": (our_cql, their_cql)}


@pytest.fixture(params=PAIRS)
def pair(request):
    ours, their = PAIRS[request.param]
    made = ours()
    return made, [their(made, g) for g in range(G)]


def test_targets_agree(pair):
    made, peers = pair
    found = given()
    target = made.target(found)
    for g, peer in enumerate(peers):
        following = peer.compute_target(theirs(found, g))[:, 0]
        torch.testing.assert_close(target[g], found.reward[g] + 0.9 * found.going[g] * following, **TOLERANCE)


def test_losses_agree(pair):
    made, peers = pair
    found = given()
    losses = made.losses(found)
    for g, peer in enumerate(peers):
        theirs_g = theirs(found, g)
        torch.testing.assert_close(losses[g], peer.compute_loss(theirs_g, peer.compute_target(theirs_g)).loss, **TOLERANCE)


def test_a_price_on_logits_is_on_raw_ones_here_and_on_normalised_ones_there():
    found, made, free = given(), our_bcq(0.3), our_bcq(0.0)
    losses, unpriced = made.losses(found), free.losses(found)
    raw = made.modules["imitation"](found.state)
    for g in range(G):
        peer, theirs_g = their_bcq(made, g), theirs(found, g)
        loss = peer.compute_loss(theirs_g, peer.compute_target(theirs_g)).loss
        torch.testing.assert_close(losses[g] - unpriced[g], 0.3 * raw[g].square().mean(), **TOLERANCE)
        torch.testing.assert_close(loss - unpriced[g], 0.3 * raw[g].log_softmax(1).square().mean(), **TOLERANCE)


def test_updates_agree():
    found, ours = given(), {"bcq": our_bcq(0.0), "cql": our_cql()}
    peers = {name: [PAIRS[name][1](made, g) for g in range(G)] for name, made in ours.items()}
    for number in range(UPDATES):
        for name, made in ours.items():
            made.update(found, number)
            for g, peer in enumerate(peers[name]):
                peer.inner_update(theirs(found, g), number + 1)
    for g in range(G):
        for name, module in zip(("value", "target", "imitation"), bcq_modules(peers["bcq"][g]), strict=True):
            same(ours["bcq"].modules[name], g, module)
        for network, module in zip(ours["cql"].modules["value"], peers["cql"][g].modules.q_funcs, strict=True):
            same(network, g, module)


@pytest.mark.parametrize(("name", "choose", "options"), [("bcq", bcq.choose, {"threshold": 0.6}), ("cql", cql.choose, {})])
def test_actions_agree(name, choose, options):
    made, found = PAIRS[name][0](), given()
    state, actions = torch.cat([found.state, found.next_state], 1), []
    for g in range(G):
        own = {key: network.alone(g) for key, network in made.acting().items()}
        actions.append(choose(own, state[g], [], **options)[:, 0])
        assert torch.equal(actions[g], PAIRS[name][1](made, g).predict_best_action(state[g]))
    assert len(torch.cat(actions).unique()) > 1
