"""EnsembleMean steps all members from their mean, against a hand-made pair of members."""

import torch

from lowrank_rl.rl.models.ensemble_mean import EnsembleMean
from lowrank_rl.rl.unroll import rollout


class Pair:
    """Two members: one squares the state, one adds the action; a context of 1 means that this row moves at all."""

    members, past, noisy = 2, 0, False

    def predict(self, context, state, action, generator=None):
        moved = torch.stack([state[0] ** 2, state[1] + action])
        return state + context * (moved - state)


def test_each_step_starts_from_the_mean_of_the_last():
    mean, context = EnsembleMean(Pair()), torch.ones(1, 1, 2)
    actions = torch.tensor([[[[1.0], [2.0]]]])
    path = mean.rollout(context, torch.tensor([[[3.0]]]), actions).flatten()
    first = (3.0 ** 2 + (3.0 + 1.0)) / 2                 # 6.5
    assert path.tolist() == [3.0, first, (first ** 2 + first + 2.0) / 2]
    apart = rollout(Pair(), torch.ones(2, 1, 1), torch.full((2, 1, 1), 3.0), actions).mean(0).flatten()
    assert apart.tolist() == [3.0, first, (3.0 ** 4 + 6.0) / 2]


def test_members_keep_their_own_contexts():
    context = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])   # row 0: only the first member moves; row 1: only the second
    out = EnsembleMean(Pair()).predict(context, torch.tensor([[[3.0], [3.0]]]), torch.tensor([[1.0], [1.0]]))
    assert out.flatten().tolist() == [(9.0 + 3.0) / 2, (3.0 + 4.0) / 2]
