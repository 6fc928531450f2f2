"""The loop that steps a model forward, against scalar arithmetic."""

import torch

from lowrank_rl.rl.unroll import rollout, unroll


class Scalar:
    """next = context * state + action: all numbers of a trajectory can be told by hand."""

    members, past, noisy = 2, 0, False

    def predict(self, context, state, action, generator=None):
        noise = 0 if generator is None else torch.randn(state.shape, generator=generator, dtype=state.dtype)
        return context * state + action + noise


def example(B=3, C=4, H=5):
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=draw, dtype=torch.float64) for shape in ((2, B, 1), (2, B, 1), (B, C, H, 1)))


def test_unroll_chains_the_steps():
    context = torch.tensor([[[2.0]], [[3.0]]])
    steps = list(unroll(Scalar(), context, torch.ones(2, 1, 1), torch.tensor([[[1.0], [-1.0]]])))
    assert [[x.flatten().tolist() for x in step] for step in steps] == [
        [[1, 1], [1], [3, 4]],        # 2 * 1 + 1 and 3 * 1 + 1
        [[3, 4], [-1], [5, 11]]]      # each member trusts its own state


def test_rollout_is_a_scalar_loop_over_members_rows_and_plans():
    context, state, actions = example()
    future = rollout(Scalar(), context, state, actions)
    assert future.shape == (2, 3, 4, 5 + 1, 1)
    for m, b, c in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        x = float(state[m, b])
        assert float(future[m, b, c, 0]) == x
        for h in range(5):
            x = float(context[m, b]) * x + float(actions[b, c, h])
            assert abs(float(future[m, b, c, h + 1]) - x) < 1e-12


def test_rollout_hands_the_generator_to_every_step():
    context, state, actions = example()
    first, again = (rollout(Scalar(), context, state, actions, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    noise = (first - rollout(Scalar(), context, state, actions))[..., 1:, :]
    assert len(noise.flatten().unique()) == noise.numel()
