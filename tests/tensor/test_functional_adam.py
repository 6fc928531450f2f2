"""fit_adam against torch.optim.Adam by hand, planted tensors, and interrupted runs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor import CP, AdamConfig, Categorical, FunctionalCP, Neural
from lowrank_rl.tensor.functional import FunctionalModule
from lowrank_rl.tensor.functional_adam import fit_adam


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(count: int = 60, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """(id of the row, agent, state), noisy targets (count, 2); every row has its own id, so that a hook can tell rows."""
    draw = numpy_stream(seed, "adam", "problem")
    agent, state = draw.integers(5, size=count), draw.normal(size=(count, 2))
    y = (1 + agent[:, None]) / 3 * np.sin(state @ [[1, 2], [2, 1]]) + 0.3 * draw.normal(size=(count, 2))
    dtype = torch.get_default_dtype()
    return [torch.arange(count), torch.tensor(agent), torch.tensor(state).to(dtype)], torch.tensor(y).to(dtype)


def start(count: int = 60, members: int = 2, seed: int = 0, activation: str = "tanh") -> FunctionalModule:
    modes = [Categorical(count), Categorical(5), Neural(2, hidden=(8,), activation=activation)]
    return FunctionalModule(modes, 2, 2, 2, members, generator=stream(seed, "start"))


def fit(config: AdamConfig, *, module=None, data=None, seed: int = 0, **options):
    coordinates, target = data or problem()
    return fit_adam(module or start(), coordinates, target, config, generator=stream(seed, "order"), **options)


def bits(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def without_seconds(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


class Spy(nn.Module):
    """One number per member; remembers which rows it was shown, in training and outside."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members, self.trained, self.scored = members, [], []
        self.level = nn.Parameter(torch.zeros(members, 1, 1))

    def forward(self, coordinates):
        (self.trained if torch.is_grad_enabled() else self.scored).append(coordinates[0])
        return self.level.expand(self.members, coordinates[0].shape[1], 1)


# The steps

class SingleModel(nn.Module):
    """What member m of ``start()`` is, written with PyTorch's own layers."""

    def __init__(self, module: FunctionalModule, m: int) -> None:
        super().__init__()
        rows, agents, net = module.modes
        self.tables = nn.ParameterList([rows.table[m].detach().clone(), agents.table[m].detach().clone()])
        self.biases = nn.ParameterList([rows.bias[m, 0].detach().clone(), agents.bias[m, 0].detach().clone()])
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 4)
        for layer, peer in ((self.first, net.layers[0]), (self.last, net.layers[1])):
            layer.load_state_dict({"weight": peer.weight[m].T, "bias": peer.bias[m, 0]})

    def forward(self, row, agent, state):
        out = self.last(torch.tanh(self.first(state))).reshape(-1, 2, 2)   # (B, D, R)
        u, v = (bias + table[i] for table, bias, i in zip(self.tables, self.biases, (row, agent), strict=True))
        return torch.einsum("br,br,bdr->bd", u, v, out)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("epochs", "beta2"), [(1, 0.999), (4, 0.999), (4, 0.9)])
def test_steps_equal_adam_by_hand_on_each_member_alone(epochs, beta2):
    """With one batch per epoch both see the same rows, whatever their order."""
    coordinates, target = problem()
    module = start(members=2)
    alone = [SingleModel(module, m) for m in range(2)]
    fitted = fit(AdamConfig(epochs=epochs, batch=60, learning_rate=0.03, beta2=beta2, schedule="constant"), module=module)
    for m, model in enumerate(alone):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03, betas=(0.9, beta2))
        losses = []
        for _ in range(epochs):
            loss = (model(*coordinates) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        moved = SingleModel(fitted.module, m)
        for ours, theirs in zip(moved.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        alone[m] = losses
    np.testing.assert_allclose([e["loss"] for e in fitted.history], np.mean(alone, axis=0), rtol=1e-9)


@pytest.mark.parametrize(("held_out", "kept"), [(0.0, 0), (0.25, 5)])
def test_each_member_sees_each_training_row_once_per_epoch_in_its_own_order(held_out, kept):
    spy, epochs = Spy(3), 4
    fit_adam(spy, [torch.arange(20)], torch.zeros(20, 1), AdamConfig(epochs=epochs, batch=6, held_out=held_out),
             generator=stream(0))
    shown = torch.cat(spy.trained, dim=1).reshape(3, epochs, 20 - kept)
    training = set(shown[0, 0].tolist())
    assert len(training) == 20 - kept
    assert all(sorted(row.tolist()) == sorted(training) for row in shown.flatten(0, 1))
    assert len({tuple(row.tolist()) for row in shown.flatten(0, 1)}) == 3 * epochs
    assert [x.shape[1] for x in spy.trained[:len(spy.trained) // epochs]] == ([6, 6, 6, 2] if kept == 0 else [6, 6, 3])
    scored = {i for x in spy.scored for i in x.flatten().tolist()}
    assert scored == (set(range(20)) - training if kept else set())


@pytest.mark.usefixtures("double")
def test_losses_are_means_over_entries_also_when_the_last_batch_is_short():
    """A vanishing learning rate leaves the start as it is, so both losses can be computed beside."""
    module, (coordinates, target), shown = start(), problem(), []
    with torch.no_grad():
        errors = (module([x.expand(2, *x.shape) for x in coordinates]) - target).square()
    module.register_forward_pre_hook(lambda _, x: shown.append(x[0][0]) if torch.is_grad_enabled() else None)
    entry, = fit(AdamConfig(epochs=1, batch=40, learning_rate=1e-15, held_out=0.2), module=module).history
    training = torch.zeros(60, dtype=torch.bool)
    training[torch.cat(shown, dim=1)] = True
    assert entry["loss"] == pytest.approx(float(errors[:, training].mean()), rel=1e-9)
    assert entry["held_out"] == pytest.approx(float(errors[:, ~training].mean()), rel=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("schedule", "epochs", "per_epoch", "way"), [
    ("constant", 4, [1, 1, 1, 1], 8),
    ("halve", 4, [1, 1, 0.5, 0.5], 6),
    ("halve", 3, [1, 1, 0.5], 4.5),                          # halved in the middle of the second epoch
    ("cosine", 4, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4],
     sum((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))),
])
def test_learning_rates(schedule, epochs, per_epoch, way):
    """Far from its target, Adam's gradient is constant and each of the two steps per epoch is one learning rate long."""
    spy = Spy(1)
    config = AdamConfig(epochs=epochs, batch=5, learning_rate=0.1, schedule=schedule)
    fitted = fit_adam(spy, [torch.arange(10)], torch.full((10, 1), 1e9), config, generator=stream(0))
    np.testing.assert_allclose([e["learning_rate"] for e in fitted.history], 0.1 * np.array(per_epoch), atol=1e-15)
    assert spy.level.item() == pytest.approx(0.1 * way, rel=1e-6)


# What is learned

@pytest.mark.parametrize("kind", ["categories", "network"])
def test_a_planted_rank_2_tensor_is_recovered_where_it_was_not_observed(kind):
    draw = numpy_stream(0, "adam", "planted", kind)
    shape = (14, 12, 6)
    first, second, third = (1 + 0.5 * draw.normal(size=(n, 2)) for n in shape)
    X = [draw.integers(n, size=2000) for n in shape]
    modes = [Categorical(n) for n in shape]
    if kind == "network":   # the second mode is a curve instead of a table
        X[1] = draw.uniform(-2, 2, (2000, 1))
        modes[1] = Neural(1, hidden=(32,), activation="tanh")
        curve = np.concatenate([np.sin(X[1]), 1 + X[1] / 2], axis=1)
        y = (first[X[0]] * curve * third[X[2]]).sum(1)
    else:
        y = CP(np.ones(2), (first, second, third)).at(np.stack(X, axis=1))
    seen = draw.random(len(y)) < 0.5
    config = AdamConfig(epochs=150, batch=64, learning_rate=0.02)
    model = FunctionalCP(modes, rank=2, normalize=False, solver=config)   # less its mean, a rank-2 tensor has rank 3
    model.fit([x[seen] for x in X], y[seen])
    losses = [entry["loss"] for entry in model.history_]
    assert losses[0] > 10 * losses[30] > 10 * losses[-1]
    new = ~seen if kind == "network" else ~seen & ~np.isin(np.ravel_multi_index(X, shape), np.ravel_multi_index(
        [x[seen] for x in X], shape))
    assert model.score([x[new] for x in X], y[new]) > 0.99


def test_nearly_equal_agents_train_better_than_standard_normal_tables():
    """DESIGN.md, section 4: on the equations of MountainCar with 50 gravities, N(0, 1) tables lag far behind."""
    draw = numpy_stream(0, "adam", "mountain car")
    gravity, count = draw.uniform(0.001, 0.004, 50), 3000
    agent, action = draw.integers(50, size=count), draw.integers(3, size=count)
    state = np.stack([draw.uniform(-1.2, 0.6, count), draw.uniform(-0.07, 0.07, count)], axis=1)
    push = 0.001 * (action - 1) - gravity[agent] * np.cos(3 * state[:, 0])
    delta = np.stack([state[:, 1] + push, push], axis=1)
    coordinates = [torch.tensor(agent), torch.tensor(state).float(), torch.tensor(action)]
    target = torch.tensor((delta - delta.mean(0)) / delta.std(0)).float()
    coordinates[1] = (coordinates[1] - coordinates[1].mean(0)) / coordinates[1].std(0)

    def last_loss(seed: int, standard_normal: bool) -> float:
        module = FunctionalModule([Categorical(50), Neural(2, hidden=(64,)), Categorical(3)], 3, 2, 1, 1,
                                  generator=stream(seed, "start"))
        if standard_normal:
            for k in (0, 2):
                nn.init.normal_(module.modes[k].table, generator=stream(seed, "normal", k))
                nn.init.zeros_(module.modes[k].bias)
        config = AdamConfig(epochs=20, batch=128, learning_rate=3e-3)
        return fit_adam(module, coordinates, target, config, generator=stream(seed, "order")).history[-1]["loss"]

    nearly_equal, normal = ([last_loss(seed, how) for seed in range(2)] for how in (False, True))
    assert max(nearly_equal) < 0.5 * min(normal), (nearly_equal, normal)


def test_held_out_entries_are_never_trained_on():
    config, shown, module = AdamConfig(epochs=5, batch=16, held_out=0.3), [], start()
    module.register_forward_pre_hook(lambda _, x: shown.append(x[0][0]) if torch.is_grad_enabled() else None)
    plain = fit(config, module=module)
    coordinates, target = problem()
    hidden = np.setdiff1d(np.arange(60), torch.cat(shown, dim=1).flatten().numpy())
    assert len(hidden) == 18
    wild = target.clone()
    wild[hidden] = 1e6
    other = fit(config, data=(coordinates, wild))
    assert torch.equal(bits(plain.module), bits(other.module))
    assert [e["loss"] for e in plain.history] == [e["loss"] for e in other.history]
    assert other.history[-1]["held_out"] > 1e11 > plain.history[-1]["held_out"]


def test_early_stopping_gives_the_best_parameters_and_says_why():
    module, shown = start(), []
    module.register_forward_pre_hook(lambda _, x: shown.append(x[0][0]) if torch.is_grad_enabled() else None)
    fitted = fit(AdamConfig(epochs=300, batch=16, learning_rate=0.02, held_out=0.3, patience=4), module=module)
    losses = [entry["held_out"] for entry in fitted.history]
    assert fitted.stopped == "no better held-out loss for 4 epochs"
    assert len(losses) == losses.index(min(losses)) + 1 + 4 < 300
    assert min(losses) < losses[-1]
    coordinates, target = problem()
    hidden = np.setdiff1d(np.arange(60), torch.cat(shown, dim=1).flatten().numpy())
    with torch.no_grad():
        out = fitted.module([x[hidden].expand(2, *x[hidden].shape) for x in coordinates])
    assert float((out - target[hidden]).square().mean()) == pytest.approx(min(losses), rel=1e-5)


def test_patience_restores_the_best_also_when_the_epochs_run_out():
    fitted = fit(AdamConfig(epochs=30, batch=16, learning_rate=0.02, held_out=0.3, patience=1000))
    losses = [entry["held_out"] for entry in fitted.history]
    assert fitted.stopped == "reached the last epoch"
    assert len(losses) == 30
    watched, after = start(), []
    fit(AdamConfig(epochs=30, batch=16, learning_rate=0.02, held_out=0.3), module=watched,
        progress=lambda _: after.append(bits(watched)))
    assert torch.equal(bits(fitted.module), after[losses.index(min(losses))])


def test_same_seed_same_bits_another_seed_others():
    config = AdamConfig(epochs=3, batch=16)
    first, state = fit(config), torch.get_rng_state()
    torch.rand(7)
    again, other = fit(config), fit(config, seed=1)
    assert torch.equal(bits(first.module), bits(again.module))
    assert without_seconds(first.history) == without_seconds(again.history)
    assert not torch.equal(bits(first.module), bits(other.module))
    torch.set_rng_state(state)
    fit(config)
    assert torch.equal(state, torch.get_rng_state())


def test_progress_gets_the_history_as_it_grows():
    seen = []
    fitted = fit(AdamConfig(epochs=3, batch=16, held_out=0.2), progress=seen.append)
    assert seen == fitted.history
    assert [entry["epoch"] for entry in seen] == [1, 2, 3]
    assert [set(entry) for entry in seen] == [{"epoch", "loss", "held_out", "learning_rate", "seconds"}] * 3
    assert 0 <= seen[0]["seconds"] <= seen[1]["seconds"] <= seen[2]["seconds"]


# Interruptions

class Killed(Exception):
    pass


def kill_after(epoch: int):
    def progress(entry):
        if entry["epoch"] == epoch:
            raise Killed
    return progress


LONG = AdamConfig(epochs=8, batch=16, learning_rate=0.02, held_out=0.3)
PATIENT = AdamConfig(epochs=60, batch=16, learning_rate=0.02, held_out=0.3, patience=4)


@pytest.mark.parametrize("config", [LONG, PATIENT, AdamConfig(epochs=8, batch=60)])
def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(config, tmp_path):
    file, epochs = tmp_path / "training", []
    whole = fit(config)
    for epoch in (1, 4, 5):   # killed three times, each time a little later
        with pytest.raises(Killed):
            fit(config, checkpoint=file, checkpoint_seconds=0, progress=kill_after(epoch))
        assert file.exists() == (epoch > 1)
    resumed = fit(config, checkpoint=file, checkpoint_seconds=0, progress=lambda entry: epochs.append(entry["epoch"]))
    assert epochs[0] == 5   # epoch 4 was kept
    assert torch.equal(bits(resumed.module), bits(whole.module))
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert resumed.stopped == whole.stopped
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_only_so_often(tmp_path):
    with pytest.raises(Killed):
        fit(LONG, checkpoint=tmp_path / "training", checkpoint_seconds=1000, progress=kill_after(6))
    assert list(tmp_path.iterdir()) == []


COORDINATES, TARGET = problem()
OTHER_JOBS = {
    "config": {"config": AdamConfig(epochs=8, batch=16, learning_rate=0.01, held_out=0.3)},
    "targets": {"data": (COORDINATES, TARGET + (torch.arange(60) == 0)[:, None])},
    "coordinates": {"data": ([*COORDINATES[:2], COORDINATES[2].flip(0)], TARGET)},
    "start": {"module": lambda: start(seed=1)},
    "activation": {"module": lambda: start(activation="relu")},
    "order": {"seed": 1},
    "members": {"module": lambda: start(members=3)},
}


@pytest.mark.parametrize("difference", OTHER_JOBS)
def test_the_checkpoint_of_another_job_is_not_taken_up(difference, tmp_path):
    file, other = tmp_path / "training", {"config": LONG, **OTHER_JOBS[difference]}
    with pytest.raises(Killed):
        fit(LONG, checkpoint=file, checkpoint_seconds=0, progress=kill_after(5))
    assert file.exists()

    def run(**options):
        made = {"module": other["module"]()} if "module" in other else {}
        return fit(**{**other, **made, **options})

    fresh, beside = run(), run(checkpoint=file, checkpoint_seconds=0)
    assert torch.equal(bits(fresh.module), bits(beside.module))
    assert without_seconds(fresh.history) == without_seconds(beside.history)


def test_a_spoiled_checkpoint_is_one_clear_error(tmp_path):
    file = tmp_path / "training"
    with pytest.raises(Killed):
        fit(LONG, checkpoint=file, checkpoint_seconds=0, progress=kill_after(5))
    whole = file.read_bytes()
    middle = len(whole) // 2
    for spoiled in (whole[:-9], b"", b"not a file of ours", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]):
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"training: expected a saved checkpoint, got a corrupt or truncated file"):
            fit(LONG, checkpoint=file)
    file.write_bytes(whole)
    assert torch.equal(bits(fit(LONG, checkpoint=file).module), bits(fit(LONG).module))


def test_a_model_file_is_not_taken_for_a_checkpoint(tmp_path):
    X, y = [np.arange(4), np.arange(4)], np.arange(4.0)
    model = FunctionalCP([Categorical(4), Categorical(4)], rank=1, solver=AdamConfig(epochs=1)).fit(X, y)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="expected a checkpoint of schema 1, got kind 'FunctionalCP'"):
        model.fit(X, y, checkpoint=tmp_path / "model")
    np.testing.assert_array_equal(FunctionalCP.load(tmp_path / "model").predict(X), model.predict(X))


# What is refused

def test_a_loss_that_leaves_the_numbers_is_an_error():
    with pytest.raises(ValueError, match=r"training diverged in epoch 1: expected finite losses, got (inf|nan) .* use a "
                                         r"learning rate below 1e\+30"):
        fit(AdamConfig(epochs=3, batch=16, learning_rate=1e30))


def test_divergence_in_the_very_last_step_shows_in_the_held_out_loss():
    with pytest.raises(ValueError, match=r"training diverged in epoch 1: .* \(held out (inf|nan)\)"):
        fit(AdamConfig(epochs=1, batch=60, learning_rate=1e30, held_out=0.2))


@pytest.mark.parametrize(("values", "message"), [
    ({"epochs": 0}, "epochs: expected a whole number >= 1, got 0"),
    ({"batch": 0}, "batch: expected a whole number >= 1, got 0"),
    ({"batch": 0.5}, "batch: expected a whole number >= 1, got 0.5"),
    ({"learning_rate": 0.0}, "learning_rate: expected a number above 0, got 0.0"),
    ({"learning_rate": math.nan}, "learning_rate: expected a number above 0, got nan"),
    ({"learning_rate": math.inf}, "learning_rate: expected a number above 0, got inf"),
    ({"schedule": "step"}, "unknown schedule 'step'; known: constant, halve, cosine"),
    ({"beta2": 1.0}, r"beta2: expected a share in \[0, 1\), got 1.0"),
    ({"held_out": 1.0}, r"held_out: expected a fraction in \[0, 1\), got 1.0"),
    ({"held_out": -0.1}, r"held_out: expected a fraction in \[0, 1\), got -0.1"),
    ({"patience": 3}, "patience: expected held_out > 0 beside it, got 0"),
    ({"patience": -1, "held_out": 0.1}, "patience: expected a whole number >= 0, got -1"),
])
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AdamConfig(**values)


def test_patience_needs_at_least_one_held_out_entry():
    with pytest.raises(ValueError, match=r"held_out: expected enough for patience, got 0\.01 of 60, which is none"):
        fit(AdamConfig(held_out=0.01, patience=3))
