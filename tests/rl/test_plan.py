"""Planners on problems whose best plan is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from lowrank_rl.rl.contracts import Box, Discrete
from lowrank_rl.rl.plan import CEMConfig, ICEMConfig, Proposals, ShootingConfig, cem, icem, random_shooting
from lowrank_rl.rng import stream

BOX = Box(-1.0, 1.0, 2)


def streams(count, seed=0):
    return [stream(seed, "plan", row) for row in range(count)]


class Spy:
    """A score that remembers what it was asked."""

    def __init__(self, score):
        self.score, self.plans, self.values = score, [], []

    def __call__(self, plans):
        self.plans.append(plans.clone())
        self.values.append(self.score(plans))
        return self.values[-1].clone()


def near(target):
    """The closer to target (B, 1, H, A) the better."""
    return lambda plans: -(plans - target).square().sum((-1, -2))


def flat(plans):
    return torch.zeros(plans.shape[:2], dtype=torch.float64)


# ---- random shooting


def test_shooting_finds_the_best_of_all_plans():
    worth = torch.rand((3, 8), generator=stream(0, "worth"))           # of each row's 2^3 plans
    code = torch.tensor([4, 2, 1])
    plan = random_shooting(lambda plans: worth.gather(1, (plans[..., 0] * code).sum(-1)), Discrete(2),
                           ShootingConfig(horizon=3, candidates=300), memory=None, generators=streams(3))
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    assert torch.equal(plan.actions[..., 0], every[worth.argmax(1)])
    assert torch.equal(plan.memory, plan.actions)
    assert plan.actions.dtype == torch.int64
    assert plan.non_finite == 0


def test_shooting_tries_the_shifted_last_plan():
    memory = Discrete(3).sample((2, 40), generator=stream(0, "memory"))
    spy = Spy(lambda plans: (plans[:, :, :-1] == memory[:, None, 1:]).all(2)[..., 0].double())
    plan = random_shooting(spy, Discrete(3), ShootingConfig(horizon=40, candidates=5), memory=memory, generators=streams(2))
    assert torch.equal(plan.actions[:, :-1], memory[:, 1:])
    assert torch.equal(spy.values[0].argmax(1), torch.zeros(2, dtype=torch.int64))


def test_shooting_one_step_ahead_needs_no_memory():
    memory = torch.zeros((2, 1, 1), dtype=torch.int64)
    plan = random_shooting(lambda plans: plans[:, :, 0, 0].double(), Discrete(3), ShootingConfig(horizon=1, candidates=50),
                           memory=memory, generators=streams(2))
    assert plan.actions.flatten().tolist() == [2, 2]


@pytest.mark.parametrize("stay", [0.0, 0.5, 0.9])
def test_an_action_is_repeated_as_often_as_stay_says(stay):
    spy = Spy(flat)
    config = ShootingConfig(horizon=60, candidates=2000, stay=(stay, stay))
    random_shooting(spy, Discrete(4), config, memory=None, generators=streams(1))
    plans = spy.plans[0][0, :, :, 0]
    share = (plans[:, 1:] == plans[:, :-1]).double().mean()
    expected = stay + (1 - stay) / 4                     # a fresh action may be the old one
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / plans[:, 1:].numel())
    assert torch.bincount(plans[:, 0]).double().sub(500).abs().max() < 5 * math.sqrt(2000 / 4)


def test_every_candidate_has_one_chance_to_stay():
    spy = Spy(flat)
    config = ShootingConfig(horizon=200, candidates=1500, stay=(0.0, 0.97))
    random_shooting(spy, Discrete(3), config, memory=None, generators=streams(1))
    plans = spy.plans[0][0, :, :, 0]
    repeats = (plans[:, 1:] == plans[:, :-1]).double().mean(1)
    assert ((repeats < 0.55) | (repeats > 0.85)).all()   # 1/3 or 0.98, nothing between
    assert abs((repeats < 0.55).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(1500)


@pytest.mark.parametrize("chance", [0.05, 0.6])
def test_candidates_near_the_last_plan_lose_actions_as_often_as_redraw_says(chance):
    memory, spy = Discrete(4).sample((2, 60), generator=stream(0, "memory")), Spy(flat)
    config = ShootingConfig(horizon=60, candidates=1001, near=0.4, redraw=(chance, chance))
    random_shooting(spy, Discrete(4), config, memory=memory, generators=streams(2))
    same = (spy.plans[0][:, :, :-1] == memory[:, None, 1:])[..., 0].double().mean((0, 2))
    expected = 1 - chance + chance / 4                   # a fresh action may be the old one
    assert same[0] == 1
    assert abs(same[1:401].mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / (2 * 400 * 59))
    assert abs(same[401:].mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / (2 * 600 * 59))


def test_every_candidate_near_the_last_plan_has_one_chance():
    memory, spy = torch.zeros((1, 200, 1), dtype=torch.int64), Spy(flat)
    config = ShootingConfig(horizon=200, candidates=1001, near=0.9, redraw=(0.0, 0.9))
    random_shooting(spy, Discrete(4), config, memory=memory, generators=streams(1))
    same = (spy.plans[0][0, 1:901, :-1, 0] == 0).double().mean(1)
    assert ((same == 1) | (same < 0.6)).all()            # all kept, or about a third
    assert abs((same == 1).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(900)


def test_plans_near_the_last_one_get_better_from_step_to_step():
    def best(near, steps=60):
        memory, value = None, []
        for t in range(steps):
            plan = random_shooting(lambda plans: (plans == 1).double().sum((-1, -2)), Discrete(3),
                                   ShootingConfig(horizon=40, candidates=50, near=near), memory=memory,
                                   generators=streams(1, t))
            memory = plan.memory
            value.append(int((plan.actions == 1).sum()))
        return value
    alone, near_by = best(0.0), best(0.5)
    assert alone[0] == near_by[0]                        # nothing to remember
    assert min(near_by[20:]) > max(alone)


def test_without_a_memory_near_changes_nothing():
    plain, near_by = Spy(flat), Spy(flat)
    for spy, share in ((plain, 0.0), (near_by, 0.9)):
        config = ShootingConfig(horizon=9, candidates=20, near=share)
        random_shooting(spy, Discrete(3), config, memory=None, generators=streams(2))
    assert torch.equal(plain.plans[0], near_by.plans[0])


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_few_candidates_have_room_for_the_last_plan_only(candidates):
    memory, spy = torch.full((1, 5, 1), 2), Spy(flat)
    config = ShootingConfig(horizon=5, candidates=candidates, near=0.99, redraw=(0.0,))
    random_shooting(spy, Discrete(3), config, memory=memory, generators=streams(1))
    assert (spy.plans[0][0, :, :-1] == 2).all()


# ---- cross-entropy


def test_cem_finds_the_top_of_a_hill():
    target = torch.tensor([[[0.3, -0.6], [0.0, 0.9], [-0.2, 0.5]], [[-0.7, 0.1], [0.4, 0.4], [0.0, 0.0]]]).double()
    config = CEMConfig(horizon=3, candidates=300, elites=30, rounds=15)
    plan = cem(near(target[:, None]), BOX, config, memory=None, generators=streams(2))
    torch.testing.assert_close(plan.actions, target, atol=0.01, rtol=0)
    assert plan.actions.dtype == torch.float64


def test_cem_ends_at_the_bound_where_the_top_is_outside():
    target = torch.tensor([1.7, -0.4], dtype=torch.float64)
    spy = Spy(near(target))
    plan = cem(spy, BOX, CEMConfig(horizon=2, candidates=300, elites=30, rounds=15), memory=None, generators=streams(1))
    torch.testing.assert_close(plan.actions, torch.tensor([1, -0.4]).double().expand(1, 2, 2), atol=0.01, rtol=0)
    assert all((plans.abs() <= 1).all() for plans in spy.plans)
    assert (plan.actions.abs() <= 1).all()


def test_cem_by_a_loop_over_what_it_tried():
    """Reference section 3: mean and unbiased deviation of the elites, the first refit unsmoothed, elite mean executed."""
    wide = Box(-1e3, 1e3, 2)                             # no truncation, so that the tried plans tell mean and deviation
    config = CEMConfig(horizon=2, candidates=4000, elites=7, rounds=4, smoothing=0.3)
    spy = Spy(near(torch.tensor([0.5, -2.0], dtype=torch.float64)))
    plan = cem(spy, wide, config, memory=None, generators=streams(1))
    assert len(spy.plans) == 4
    mean = deviation = elites = None
    for number, (plans, values) in enumerate(zip(spy.plans, spy.values, strict=True)):
        plans, order = plans[0].numpy(), np.argsort(-values[0].numpy())
        if number:
            error = deviation / math.sqrt(4000)
            assert (np.abs(plans.mean(0) - mean) < 5 * error).all()
            assert (np.abs(plans.std(0, ddof=1) - deviation) < 5 * error).all()
        elites = plans[order[:7]]
        keep = 0.3 if number else 0.0
        old = (0, 0) if number == 0 else (mean, deviation)
        mean = keep * old[0] + (1 - keep) * elites.mean(0)
        deviation = keep * old[1] + (1 - keep) * elites.std(0, ddof=1)
    np.testing.assert_allclose(plan.actions[0], elites.mean(0), atol=1e-12)
    np.testing.assert_allclose(plan.memory[0], mean, atol=1e-12)


def test_cem_draws_truncated_normals_around_the_shifted_last_mean():
    memory = torch.tensor([[[9, 9], [-0.95, 0.0], [0.4, 1.0]]], dtype=torch.float64)    # its first action has been executed
    spy = Spy(flat)
    C = 20000
    cem(spy, BOX, CEMConfig(horizon=3, candidates=C, rounds=1, spread=(0.4, 0.4)), memory=memory, generators=streams(1))
    plans = spy.plans[0][0].numpy()
    for h, a, mean in ((0, 0, -0.95), (0, 1, 0.0), (1, 0, 0.4), (1, 1, 1.0), (2, 0, 0.0), (2, 1, 0.0)):
        law = truncnorm((-1 - mean) / 0.4, (1 - mean) / 0.4, mean, 0.4)
        assert abs(plans[:, h, a].mean() - law.mean()) < 5 * law.std() / math.sqrt(C)
        assert plans[:, h, a].std() == pytest.approx(law.std(), rel=0.03)
        assert plans[:, h, a].min() >= -1
        assert plans[:, h, a].max() <= 1


def test_cem_starts_with_one_deviation_per_decision():
    spy = Spy(flat)
    cem(spy, Box(-1e3, 1e3, 2), CEMConfig(horizon=3, candidates=5000, rounds=1, spread=(0.3, 0.6)), memory=None,
        generators=streams(40))
    deviation = spy.plans[0].std(1)                                        # (B, H, A)
    each = deviation.mean((1, 2))
    assert (deviation - each[:, None, None]).abs().max() < 0.04            # within a row all are one number
    assert 0.29 < each.min() < 0.34                                        # over the rows, uniform
    assert 0.56 < each.max() < 0.61


def test_cem_keeps_failed_plans_out_of_the_elites():
    """Fewer finite plans than elites: the mean is of the finite ones."""
    def score(plans):
        return torch.where(plans[..., 0, 0] > 0.5, plans[..., 0, 0], math.nan)
    plan = cem(score, Box(-1.0, 1.0, 1), CEMConfig(horizon=1, candidates=30, elites=25, rounds=1), memory=None,
               generators=streams(4))
    assert (plan.actions > 0.5).all()


# ---- improved cross-entropy


def test_icem_finds_the_top_of_a_hill_inside_and_at_the_bound():
    target = torch.tensor([[[0.3, -0.6], [0.0, 0.9], [-0.2, 1.7]], [[-0.7, 0.1], [0.4, 0.4], [0.0, -2.0]]]).double()
    spy = Spy(near(target[:, None]))
    plan = icem(spy, BOX, ICEMConfig(horizon=3, candidates=300, elites=20, rounds=12), memory=None, generators=streams(2))
    torch.testing.assert_close(plan.actions, target.clamp(-1, 1), atol=0.02, rtol=0)
    assert all((plans.abs() <= 1).all() for plans in spy.plans)


def test_icem_by_a_loop_over_what_it_tried():
    """Pinneri and others 2020, algorithm 1: fewer fresh plans each round, then kept elites and the mean; the best of all."""
    wide = Box(-1e3, 1e3, 2)
    config = ICEMConfig(horizon=4, candidates=4000, elites=8, rounds=4, decay=2.0, colour=1.0, kept=0.25, smoothing=0.2,
                        spread=0.7)
    memory = 3 * torch.randn((1, 3, 4, 2), generator=stream(0, "memory"), dtype=torch.float64)      # a mean and two elites
    spy = Spy(near(torch.tensor([0.5, -2.0], dtype=torch.float64)))
    plan = icem(spy, wide, config, memory=memory, generators=streams(1))
    later = torch.cat([memory[0, :, 1:], memory[0, :, -1:]], dim=1).numpy()
    mean, kept, deviation = later[0], later[1:], np.full((4, 2), 0.7)
    assert [plans.shape[1] for plans in spy.plans] == [4003, 2003, 1003, 503]
    for plans, values in zip(spy.plans, spy.values, strict=True):
        plans, values = plans[0].numpy(), values[0].numpy()
        np.testing.assert_allclose(plans[-3:], [*kept, mean], atol=1e-12)
        fresh = plans[:-3]
        assert (np.abs(fresh.mean(0) - mean) < 5 * deviation / math.sqrt(len(fresh))).all()
        np.testing.assert_allclose(fresh.std(0), deviation, rtol=5 / math.sqrt(len(fresh)))
        elites = plans[np.argsort(-values)[:8]]
        mean = 0.2 * mean + 0.8 * elites.mean(0)
        deviation = 0.2 * deviation + 0.8 * elites.std(0, ddof=1)
        kept = elites[:2]
    np.testing.assert_allclose(plan.memory[0], [mean, *kept], atol=1e-12)
    every, worth = torch.cat(spy.plans, 1)[0], torch.cat(spy.values, 1)[0]
    assert torch.equal(plan.actions[0], every[worth.argmax()])


@pytest.mark.parametrize("horizon", [16, 17])
@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_icem_noise_has_the_colour_asked_for(horizon, colour):
    spy = Spy(flat)
    config = ICEMConfig(horizon=horizon, candidates=20000, rounds=1, colour=colour, spread=0.4)
    icem(spy, Box(-1e3, 1e3, 2), config, memory=None, generators=streams(1))
    noise = spy.plans[0][0, :20000] / 0.4                                  # (C, H, A)
    torch.testing.assert_close(noise.var(0), torch.ones((horizon, 2), dtype=torch.float64), atol=0.06, rtol=0)
    power = np.abs(np.fft.fft(noise.numpy(), axis=1)[:, 1:horizon // 2 + 1]) ** 2
    slope = np.polyfit(np.log(np.arange(1, horizon // 2 + 1)), np.log(power.mean((0, 2))), 1)[0]
    assert slope == pytest.approx(-colour, abs=0.03)
    assert abs((noise[..., 0] * noise[..., 1]).mean()) < 0.02              # joints are independent


def test_icem_stays_near_the_best_proposal():
    """By hand: the search starts from that proposal, and a quadratic hill with a quadratic pull peaks in between."""
    target = torch.full((1, 3, 2), 0.8, dtype=torch.float64)
    offered = torch.stack([torch.full((3, 2), x, dtype=torch.float64) for x in (-0.9, 0.4, 0.0)])[None]
    config = ICEMConfig(horizon=3, candidates=300, elites=20, rounds=15, guided=0.1)
    spy = Spy(near(target[:, None]))
    plan = icem(spy, BOX, config, memory=None, generators=streams(1), proposals=Proposals(offered, 0.0))
    assert torch.equal(spy.plans[0], offered)
    first = spy.plans[2][0, :300]                       # after the proposals, and those beside what is remembered
    assert abs(first.mean() - 0.4) < 0.02
    assert first.std() == pytest.approx(0.1, abs=0.02)
    torch.testing.assert_close(plan.actions, target, atol=0.05, rtol=0)
    # each component costs (a - 0.8)^2 and, as its share of the pull, (a - 0.4)^2: the middle is best
    pulled = icem(Spy(near(target[:, None])), BOX, config, memory=None, generators=streams(1),
                  proposals=Proposals(offered, 2.0))
    torch.testing.assert_close(pulled.actions, torch.full((1, 3, 2), 0.6, dtype=torch.float64), atol=0.05, rtol=0)


def test_a_pulled_plan_is_the_proposal_itself_where_nothing_else_pays():
    offered = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(2, 1, 3, 2)
    plan = icem(flat, BOX, ICEMConfig(horizon=3, candidates=50), memory=None, generators=streams(2),
                proposals=Proposals(offered, 1.0))
    assert torch.equal(plan.actions, offered[:, 0])


# ---- all


PLANNERS = {
    "shooting": (random_shooting, Discrete(3), ShootingConfig(horizon=4, candidates=60, near=0.5)),
    "cem": (cem, Box(-1.0, 1.0, 1), CEMConfig(horizon=4, candidates=60, elites=5, rounds=3)),
    "icem": (icem, Box(-1.0, 1.0, 1), ICEMConfig(horizon=4, candidates=60, elites=5, rounds=3, decay=1.0)),
}


@pytest.fixture(params=PLANNERS)
def search(request):
    planner, actions, config = PLANNERS[request.param]
    return lambda score, generators: planner(score, actions, config, memory=None, generators=generators)


def first_action(plans):
    return plans[:, :, 0, 0].double()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_failed_scores_never_win_and_are_counted(search, bad):
    spy = Spy(lambda plans: first_action(plans).masked_fill(plans[:, :, 0, 0] > 0.9, bad))
    plan = search(spy, streams(2))
    assert (plan.actions[:, 0] <= 0.9).all()
    assert plan.non_finite == sum(int((~values.isfinite()).sum()) for values in spy.values) > 0


def test_a_row_without_any_finite_score_is_refused(search):
    def score(plans):
        value = first_action(plans)
        value[1] = math.nan
        return value
    with pytest.raises(ValueError, match="expected at least one plan with a finite score, got none of 6[01] in row 1"):
        search(score, streams(3))


def test_a_row_draws_from_its_own_generator(search):
    together, alone = Spy(first_action), Spy(first_action)
    plan = search(together, streams(3))
    own = search(alone, streams(3)[2:])
    assert torch.equal(torch.cat(together.plans, 1)[2], torch.cat(alone.plans, 1)[0])
    assert torch.equal(plan.actions[2], own.actions[0])
    assert not torch.equal(together.plans[0][0], together.plans[0][1])


def test_same_generators_same_plans(search):
    assert torch.equal(search(first_action, streams(2)).actions, search(first_action, streams(2)).actions)


@pytest.mark.parametrize(("config", "wrong", "text"), [
    (ShootingConfig, {"horizon": 0}, "horizon: expected a whole number >= 1, got 0"),
    (ShootingConfig, {"candidates": 0}, "candidates: expected"),
    (ShootingConfig, {"stay": ()}, r"stay: expected probabilities in \[0, 1\), got \(\)"),
    (ShootingConfig, {"stay": (0.5, 1.0)}, "stay: expected"),
    (ShootingConfig, {"stay": (math.nan,)}, "stay: expected"),
    (ShootingConfig, {"redraw": ()}, "redraw: expected"),
    (ShootingConfig, {"near": 1.0}, r"near: expected a share in \[0, 1\), got 1.0"),
    (ShootingConfig, {"near": math.nan}, "near: expected"),
    (CEMConfig, {"horizon": 0}, "horizon: expected"),
    (CEMConfig, {"rounds": 0}, "rounds: expected"),
    (CEMConfig, {"elites": 1}, r"elites: expected 2..200 \(candidates\), got 1"),
    (CEMConfig, {"elites": 201}, "elites: expected"),
    (CEMConfig, {"smoothing": 1.0}, r"smoothing: expected a share in \[0, 1\), got 1.0"),
    (CEMConfig, {"spread": (0.6, 0.3)}, "spread: expected 0 < low <= high"),
    (CEMConfig, {"spread": (0.0, 0.3)}, "spread: expected"),
    (ICEMConfig, {"horizon": 1}, "horizon: expected a whole number >= 2, got 1"),
    (ICEMConfig, {"elites": 1}, r"elites: expected 2..100 \(candidates\), got 1"),
    (ICEMConfig, {"kept": 1.0}, r"kept: expected a share in \[0, 1\), got 1.0"),
    (ICEMConfig, {"smoothing": -0.1}, "smoothing: expected"),
    (ICEMConfig, {"decay": 0.5}, "decay: expected a number >= 1, got 0.5"),
    (ICEMConfig, {"colour": math.nan}, "colour: expected"),
    (ICEMConfig, {"spread": 0.0}, "spread: expected"),
    (ICEMConfig, {"guided": 0.0}, "guided: expected"),
])
def test_impossible_settings_are_refused(config, wrong, text):
    with pytest.raises(ValueError, match=text):
        config(**wrong)
