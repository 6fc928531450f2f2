"""Continuous BCQ and CQL beside d3rlpy's: the same weights, batches and noise, so the same losses, networks and actions."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lowrank_rl.rl.contracts import Box
from lowrank_rl.rl.policies import bcq_continuous, cql_continuous
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.bcq_continuous import ContinuousBCQ, ContinuousBCQConfig
from lowrank_rl.rl.policies.cql_continuous import ContinuousCQL, ContinuousCQLConfig
from lowrank_rl.rng import stream

d3rlpy = pytest.importorskip("d3rlpy")

G, B, D, A, N, UPDATES = 2, 12, 5, 2, 10, 3
BOX = Box(-1.0, 1.0, A)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def encoder(*hidden):
    return d3rlpy.models.encoders.VectorEncoderFactory(list(hidden))


@pytest.fixture
def batch():
    draw = stream(0, "batch")

    def normal(*shape):
        return torch.randn((G, B, *shape), generator=draw, dtype=torch.float64)
    going = (torch.rand((G, B), generator=draw) > 0.3).double()
    return Batch(normal(D), normal(A).clamp(-1, 1), normal(), normal(D), going, torch.full((G, B), 1 / B, dtype=torch.float64),
                 torch.tensor([[-10.0, 10.0]], dtype=torch.float64).expand(G, 2))


def theirs(batch, g):
    """Run g's batch for d3rlpy."""
    column = {"rewards": batch.reward, "returns_to_go": batch.reward, "terminals": 1 - batch.going,
              "intervals": torch.ones_like(batch.reward)}
    return d3rlpy.torch_utility.TorchMiniBatch(
        observations=batch.state[g], actions=batch.action[g], next_observations=batch.next_state[g],
        next_actions=batch.action[g], device="cpu", **{name: values[g, :, None] for name, values in column.items()})


def made(config):
    """Its algorithm and modules, in float64."""
    algorithm = config.create(device="cpu:0")
    algorithm.create_impl((D,), A)
    for module in vars(algorithm.impl.modules).values():
        if isinstance(module, nn.Module):
            module.double()
    return algorithm, algorithm.impl.modules


def in_double(learner):
    for module in learner.modules.values():
        module.double()
    return learner


def parameters(module):
    """Weights and biases of its layers as ours are, heads of the last layer side by side."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    heads = layers[2:]
    weights = [layer.weight.T for layer in layers[:2]] + [torch.cat([layer.weight for layer in heads]).T]
    biases = [layer.bias[None] for layer in layers[:2]] + [torch.cat([layer.bias for layer in heads])[None]]
    return list(zip(weights, biases, strict=True))


@torch.no_grad()
def give(network, member, module):
    """A member of ours the weights of theirs."""
    for layer, (weight, bias) in zip(network.layers, parameters(module), strict=True):
        layer.weight[member], layer.bias[member] = weight, bias


def assert_same(network, member, module):
    for layer, (weight, bias) in zip(network.layers, parameters(module), strict=True):
        torch.testing.assert_close(layer.weight[member], weight, **TOLERANCE)
        torch.testing.assert_close(layer.bias[member], bias, **TOLERANCE)


def feed(patch, where, name, tensors: Iterator[torch.Tensor]):
    """Instead of drawing: the next of these."""
    patch.setattr(where, name, lambda *args, **options: next(tensors))


def test_bcq(batch, monkeypatch):
    config = ContinuousBCQConfig(batch=B, hidden=(16, 12), autoencoder=(20, 18), samples=N, choices=N)
    learner = in_double(ContinuousBCQ(D, A, config, 0, G, "cpu", box=BOX))
    # it leaves the decoder's actions unbounded, the released code does not
    monkeypatch.setattr(d3rlpy.models.torch.imitators.VAEDecoder, "forward", lambda self, x, latent, with_squash:
                        self._fc(self._encoder(x, latent)).tanh())
    witnesses = [made(d3rlpy.algos.BCQConfig(
        n_action_samples=N, actor_encoder_factory=encoder(16, 12), critic_encoder_factory=encoder(16, 12),
        imitator_encoder_factory=encoder(20, 18))) for _ in range(G)]

    def counterparts():
        for g, (_, modules) in enumerate(witnesses):
            yield "encoder", g, modules.vae_encoder
            yield "decoder", g, modules.vae_decoder
            for name, module in (("perturb", modules.policy), ("perturb target", modules.targ_policy)):
                yield name, g, module
            for name, both in (("value", modules.q_funcs), ("value target", modules.targ_q_funcs)):
                yield from ((name, 2 * g + j, module) for j, module in enumerate(both))
    for name, member, module in counterparts():
        give(learner.modules[name], member, module)

    for number in range(UPDATES):
        noise = torch.randn((G, B, N + 2, 2 * A), generator=stream(number, "noise"), dtype=torch.float64)
        monkeypatch.setattr(learner, "_noise", lambda batch, noise=noise: noise)
        loss = learner.update(batch, number)
        for g, (algorithm, _) in enumerate(witnesses):
            with monkeypatch.context() as patch:
                feed(patch, torch.distributions.normal, "_standard_normal", iter([noise[g, :, 0]]))
                feed(patch, torch, "randn", iter([noise[g, :, 1:-1].flatten(0, 1), noise[g, :, -1]]))
                found = algorithm.impl.inner_update(theirs(batch, g), number)
            assert loss[g].item() == pytest.approx(found["vae_loss"] + found["critic_loss"], rel=1e-5)
        for name, member, module in counterparts():
            assert_same(learner.modules[name], member, module)

    for g, (algorithm, _) in enumerate(witnesses):
        own = [stream(g, "row", row) for row in range(B)]
        drawn = torch.cat([torch.randn((N, 2 * A), generator=stream(g, "row", row), dtype=torch.float64) for row in range(B)])
        networks = {name: network.alone(g) for name, network in learner.acting().items()}
        action = bcq_continuous.choose(networks, batch.state[g], own, perturbation=0.05, choices=N, low=-1.0, high=1.0)
        with monkeypatch.context() as patch:
            feed(patch, torch, "randn", iter([drawn]))
            best = algorithm.impl.inner_predict_best_action(batch.state[g])
        torch.testing.assert_close(action, best, **TOLERANCE)


def test_cql(batch, monkeypatch):
    config = ContinuousCQLConfig(batch=B, hidden=(16, 12), alpha=2.0, temperature=0.3)
    learner = in_double(ContinuousCQL(D, A, config, 0, G, "cpu", box=BOX))
    witnesses = [made(d3rlpy.algos.CQLConfig(
        actor_learning_rate=3e-5, alpha_threshold=5.0, initial_alpha=2.0, initial_temperature=0.3,
        actor_encoder_factory=encoder(16, 12), critic_encoder_factory=encoder(16, 12))) for _ in range(G)]

    def counterparts():
        for g, (_, modules) in enumerate(witnesses):
            yield "policy", g, modules.policy
            for name, both in (("value", modules.q_funcs), ("target", modules.targ_q_funcs)):
                yield from ((name, 2 * g + j, module) for j, module in enumerate(both))
    for name, member, module in counterparts():
        give(learner.modules[name], member, module)

    for number in range(UPDATES):
        draw = stream(number, "noise")
        noise = torch.randn((G, B, 2 * N + 1, A), generator=draw, dtype=torch.float64)
        uniform = 2 * torch.rand((G, B, N, A), generator=draw, dtype=torch.float64) - 1
        monkeypatch.setattr(learner, "_noise", lambda batch, noise=noise, uniform=uniform: (noise, uniform))
        loss = learner.update(batch, number)
        for g, (algorithm, modules) in enumerate(witnesses):
            parts = noise[g].movedim(1, 0).split([N, N, 1])
            with monkeypatch.context() as patch:
                feed(patch, torch.distributions.normal, "_standard_normal", iter([*parts[:2], parts[2][0]]))
                feed(patch, torch.Tensor, "uniform_", iter([uniform[g].flatten(0, 1)]))
                found = algorithm.impl.inner_update(theirs(batch, g), number)
            assert loss[g].item() == pytest.approx(found["critic_loss"], rel=1e-5)
            for name, log in (("temperature", modules.log_temp), ("alpha", modules.log_alpha)):
                ours, (other,) = learner.modules["price"][name][g], log.parameters()
                assert ours.item() == pytest.approx(other.item(), abs=1e-6)
        for name, member, module in counterparts():
            assert_same(learner.modules[name], member, module)

    for g, (algorithm, _) in enumerate(witnesses):
        networks = {name: network.alone(g) for name, network in learner.acting().items()}
        action = cql_continuous.choose(networks, batch.state[g], [], low=-1.0, high=1.0)
        torch.testing.assert_close(action, algorithm.impl.inner_predict_best_action(batch.state[g]), **TOLERANCE)
