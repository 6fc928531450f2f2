"""FunctionalCP and its module: against CP, against loops, and at the door."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from torch import Tensor

from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor import CP, AdamConfig, Categorical, FunctionalCP, Neural, Spline
from lowrank_rl.tensor.foldin import fold_in
from lowrank_rl.tensor.functional import FunctionalModule
from lowrank_rl.tensor.uncertainty import Intervals

AGENTS, STATE, ACTIONS = Categorical(6), Neural(2, hidden=(7,)), Categorical(3)
QUICK = AdamConfig(epochs=3, batch=32, learning_rate=1e-2)


def tables(count: int = 100, outputs: int = 2, seed: int = 0):
    """Coordinates (agent, state, action) and targets (count, outputs) of no particular law."""
    draw = numpy_stream(seed, "functional", "tables")
    agent, state, action = draw.integers(6, size=count), draw.normal(size=(count, 2)), draw.integers(3, size=count)
    y = (1 + agent[:, None] / 6) * np.sin(state @ np.ones((2, outputs)) + np.arange(outputs)) + action[:, None]
    return (agent, state, action), y


def small(**changes) -> FunctionalCP:
    return FunctionalCP(**{"modes": [AGENTS, STATE, ACTIONS], "rank": 3, "outputs": 2, "solver": QUICK, **changes})


def parameters(model: FunctionalCP) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.module_.parameters()])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The module

@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shape", [(4, 3), (3, 4, 2), (2, 3, 2, 2)])
def test_categorical_modes_alone_are_a_cp_tensor(shape):
    module = FunctionalModule([Categorical(n) for n in shape], 3, 1, len(shape) - 1, 2, generator=stream(0))
    module.center.fill_(0.5)
    module.scale.fill_(2)
    index = np.argwhere(np.ones(shape))
    out = module.predict(torch.tensor(index).unbind(1))
    for m in range(2):
        cp = CP(np.ones(3), [mode.rows()[m].detach().numpy() for mode in module.modes])
        np.testing.assert_allclose(out[m, :, 0].detach(), 0.5 + 2 * cp.at(index), rtol=1e-12)
        np.testing.assert_allclose(out[m, :, 0].detach().reshape(shape), 0.5 + 2 * cp.dense(), rtol=1e-12)


def factor_by_hand(module: FunctionalModule, mode, k: int, m: int, x) -> np.ndarray:
    if isinstance(mode, Categorical):
        return (module.modes[k].table[m, x] + module.modes[k].bias[m, 0]).detach().numpy()
    x = np.asarray(x)
    for i, layer in enumerate(module.modes[k].layers):
        x = np.maximum(x, 0) if i else x
        x = x @ layer.weight[m].detach().numpy() + layer.bias[m, 0].detach().numpy()
    return x


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("output_mode", [0, 1, 2])
def test_forward_is_a_loop_over_members_rows_outputs_and_ranks(output_mode, outputs):
    modes, rank, members = [AGENTS, STATE, ACTIONS], 3, 2
    module = FunctionalModule(modes, rank, outputs, output_mode, members, generator=stream(1))
    coordinates = [torch.randint(6, (members, 5), generator=stream(1, 0)),
                   torch.randn(members, 5, 2, generator=stream(1, 1)),
                   torch.randint(3, (members, 5), generator=stream(1, 2))]
    out = module(coordinates)
    assert out.shape == (members, 5, outputs)
    for m in range(members):
        for b in range(5):
            factors = [factor_by_hand(module, mode, k, m, coordinates[k][m, b]) for k, mode in enumerate(modes)]
            for d in range(outputs):
                terms = [math.prod(f.reshape(outputs, rank)[d, r] if k == output_mode else f[r]
                                   for k, f in enumerate(factors)) for r in range(rank)]
                assert out[m, b, d].item() == pytest.approx(sum(terms), rel=1e-10)


@pytest.mark.usefixtures("double")
def test_members_are_a_batch_axis():
    modes = [AGENTS, STATE, ACTIONS]
    module = FunctionalModule(modes, 2, 2, 1, 3, generator=stream(2))
    coordinates = [torch.randint(6, (3, 9), generator=stream(2, 0)), torch.randn(3, 9, 2, generator=stream(2, 1)),
                   torch.randint(3, (3, 9), generator=stream(2, 2))]
    together = module(coordinates)
    for m in range(3):
        alone = FunctionalModule(modes, 2, 2, 1, 1, generator=stream(9))
        names = {name for name, _ in module.named_parameters()}
        alone.load_state_dict({name: v[m:m + 1] if name in names else v for name, v in module.state_dict().items()})
        torch.testing.assert_close(alone([x[m:m + 1] for x in coordinates])[0], together[m])


@pytest.mark.usefixtures("double")
def test_the_product_of_the_factors_is_the_prediction():
    """What a planner folds beforehand (a row, a network's output) is what predict multiplies."""
    (agent, state, action), y = tables(20)
    x = [torch.tensor(agent), torch.tensor(state), torch.tensor(action)]
    module = FunctionalModule([AGENTS, STATE, ACTIONS], 3, 2, 1, 2, generator=stream(3))
    module.prepare(x, torch.tensor(y), True)
    u, v, w = (module.factor(k, x[k]) for k in range(3))
    assert (u.shape, v.shape) == ((2, 20, 3), (2, 20, 2, 3))
    product = module.center + module.scale * torch.einsum("mbr,mbdr,mbr->mbd", u, v, w)
    torch.testing.assert_close(product, module.predict(x))
    torch.testing.assert_close(module.factor(1, x[1].expand(2, 20, 2)), v)


# Normalisation

@pytest.mark.usefixtures("double")
def test_units_of_coordinates_and_targets_do_not_matter():
    (agent, state, action), y = tables()
    plain = small(members=2).fit((agent, state, action), y)
    units, offset = np.array([4.0, 1000.0]), np.array([-3.0, 250.0])
    other = small(members=2).fit((agent, state * units + offset, action), y * [0.001, 9] + [5, -70])
    expected = plain.predict_members((agent, state, action)) * [0.001, 9] + [5, -70]
    np.testing.assert_allclose(other.predict_members((agent, state * units + offset, action)), expected, rtol=1e-7)


def test_normalised_coordinates_and_targets_have_mean_0_and_spread_1():
    X, y = tables()
    module = small().fit(X, y).module_
    np.testing.assert_allclose(module.center1, X[1].mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.scale1, X[1].std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(module.center, y.mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.scale, y.std(0, ddof=1), rtol=1e-5)
    plain = small(normalize=False).fit(X, y).module_
    for name in ("center", "center1"):
        assert not getattr(plain, name).any()
    for name in ("scale", "scale1"):
        assert (getattr(plain, name) == 1).all()


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.7, 1e6 + 0.3])
def test_constant_columns_are_harmless(constant, columns):
    """The standard deviation of 1000 times 0.1 is 3e-17, not 0: dividing by it would blow rounding up."""
    (agent, state, _), y = tables(1000, columns)
    state, y = state[:, :columns], y.copy()
    state[:, -1], y[:, -1] = constant, constant
    model = FunctionalCP([AGENTS, Neural(columns, hidden=(7,))], rank=2, outputs=columns, solver=QUICK)
    model.fit((agent, state), y)
    assert (model.module_.scale[-1], model.module_.scale1[-1]) == (1, 1)
    assert model.history_[0]["loss"] < 100   # in standardised units
    np.testing.assert_allclose(model.predict((agent, state)).reshape(y.shape)[:, -1], constant, rtol=1e-6, atol=5)


def test_one_entry_is_enough_to_fit():
    (agent, state, action), y = tables(1)
    assert np.isfinite(small().fit((agent, state, action), y).predict((agent, state, action))).all()


# The start

def test_all_categories_begin_as_nearly_the_same():
    (_, state, _), _ = tables(200)
    module = FunctionalModule([Categorical(50), STATE, ACTIONS], 3, 2, 1, 4, generator=stream(4))
    with torch.no_grad():
        out = torch.stack([module.predict([torch.full((200,), n), torch.tensor(state).float(), torch.zeros(200).long()])
                           for n in range(50)])                       # (agents, M, B, D)
    spread, size = out.std(0).square().mean().sqrt(), out.square().mean().sqrt()
    assert 0 < spread < 0.15 * size


# The door

def test_the_usage_line_of_the_design():
    (agent, state, action), delta = tables(60)
    agent = agent * 80
    model = FunctionalCP([Categorical(500), Neural(2, hidden=(256,)), Categorical(3)], rank=3, outputs=2)
    model.set_params(solver=AdamConfig(epochs=2, batch=32))
    assert model.fit((agent, state, action), delta) is model
    assert model.predict((agent, state, action)).shape == (60, 2)
    assert math.isfinite(model.score((agent, state, action), delta))
    assert (model.n_iter_, model.stopped_) == (2, "reached the last epoch")
    assert isinstance(model.module_, torch.nn.Module)


def test_numpy_pandas_and_torch_give_equal_numbers():
    (agent, state, action), y = tables()
    frame = pd.DataFrame({"agent": agent, "x": state[:, 0], "v": state[:, 1], "action": action})
    given_as = {
        "numpy": ((agent, state, action), y),
        "pandas": ((frame["agent"], frame[["x", "v"]], frame["action"]), pd.DataFrame(y, columns=["dx", "dv"])),
        "torch": (tuple(map(torch.tensor, (agent, state, action))), torch.tensor(y)),
        "lists": ((agent.tolist(), state.tolist(), action.astype(float).tolist()), y.tolist()),
    }
    reference = small().fit((agent, state, action), y)
    for name, (X, target) in given_as.items():
        model = small().fit(X, target)
        out = model.predict(X)
        assert isinstance(out, Tensor if name == "torch" else np.ndarray)
        np.testing.assert_array_equal(out, reference.predict((agent, state, action)))
        assert model.score(X, target) == reference.score((agent, state, action), y)


@pytest.mark.parametrize(("outputs", "members"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_shapes_of_predictions_and_the_mean_of_the_members(outputs, members):
    X, y = tables(40, outputs)
    model = small(outputs=outputs, members=members).fit(X, y[:, 0] if outputs == 1 else y)
    tail = () if outputs == 1 else (outputs,)
    each = model.predict_members(X)
    assert each.shape == (members, 40, *tail)
    assert model.predict(X).shape == (40, *tail)
    np.testing.assert_allclose(model.predict(X), each.mean(0), rtol=1e-5, atol=1e-6)
    if members > 1:
        assert not np.allclose(each[0], each[1])


def test_one_output_may_come_as_a_column():
    X, y = tables(40, 1)
    np.testing.assert_array_equal(small(outputs=1).fit(X, y).predict(X), small(outputs=1).fit(X, y[:, 0]).predict(X))


def test_many_rows_are_predicted_as_few():
    X, y = tables(50)
    model = small().fit(X, y)
    many = [np.concatenate([x] * 1400) for x in X]   # 70000 rows: more than one chunk
    np.testing.assert_allclose(model.predict(many), np.concatenate([model.predict(X)] * 1400), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(12)))
def test_permuted_rows_give_permuted_predictions(order):
    X, y = tables()
    model = fitted_once(X, y)
    out = model.predict([x[:12] for x in X])
    np.testing.assert_allclose(model.predict([x[:12][list(order)] for x in X]), out[list(order)], rtol=1e-5, atol=1e-6)


def fitted_once(X, y, cache={}) -> FunctionalCP:  # noqa: B006 (the cache)
    if not cache:
        cache["model"] = small().fit(X, y)
    return cache["model"]


@pytest.mark.parametrize("outputs", [1, 2])
def test_score_is_sklearns_variance_weighted_r2(outputs):
    X, y = tables(80, outputs)
    model = small(outputs=outputs).fit(X, y)
    expected = r2_score(y, model.predict(X).reshape(y.shape), multioutput="variance_weighted")
    assert model.score(X, y) == pytest.approx(expected, rel=1e-6)


def test_clone_and_parameters():
    model = small(members=2, random_state=7)
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    X, y = tables(40)
    np.testing.assert_array_equal(clone(model.fit(X, y)).fit(X, y).predict(X), model.predict(X))
    assert not hasattr(clone(model), "module_")
    assert model.set_params(rank=5).rank == 5
    with pytest.raises(ValueError, match="unknown parameter 'ranks'; known: modes, rank"):
        model.set_params(ranks=5)


def test_the_seed_decides_whatever_was_drawn_before():
    X, y = tables(60)
    first, state = small().fit(X, y), torch.get_rng_state()
    torch.rand(5)
    again = small().fit(X, y)
    assert torch.equal(parameters(first), parameters(again))
    assert [e["loss"] for e in first.history_] == [e["loss"] for e in again.history_]
    assert not torch.isclose(parameters(first), parameters(small(random_state=1).fit(X, y))).all()
    torch.set_rng_state(state)
    small().fit(X, y)
    assert torch.equal(state, torch.get_rng_state())


def test_fitting_again_forgets_the_first_fit():
    X, y = tables(60)
    model = small().fit(X, -y)
    np.testing.assert_array_equal(model.fit(X, y).predict(X), small().fit(X, y).predict(X))


@pytest.mark.parametrize("spoil", [lambda X, y, model: model.fit(X, y[:10]),
                                   lambda X, y, model: model.set_params(rank=0).fit(X, y),
                                   lambda X, y, model: model.set_params(outputs=1).fit(X, y)])
def test_a_refused_fit_leaves_the_last_one_whole(spoil, tmp_path):
    X, y = tables(60)
    model = small().fit(X, y)
    before = model.predict(X)
    with pytest.raises(ValueError, match="expected"):
        spoil(X, y, model)
    np.testing.assert_array_equal(model.predict(X), before)
    assert model.score(X, y) == small().fit(X, y).score(X, y)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(FunctionalCP.load(tmp_path / "model.safetensors").predict(X), before)
    assert fold_in(model, 0, X[1:], y).observations == 60
    held, y_held = tables(60, seed=1)
    assert Intervals.fit(model, X, y, held, y_held, draws=2).predict(X)[0].shape == y.shape


def test_a_refused_fit_before_any_other_leaves_nothing():
    X, y = tables(60)
    model = small()
    with pytest.raises(ValueError, match="y: expected shape"):
        model.fit(X, y[:10])
    assert not [name for name in vars(model) if name.endswith("_")]


def test_fitting_leaves_the_callers_arrays_alone():
    X, y = tables(60)
    kept = [x.copy() for x in (*X, y)]
    tensors = [torch.tensor(x) for x in (*X, y)]
    small().fit(X, y).predict(X)
    small().fit(tensors[:3], tensors[3]).predict(tensors[:3])
    for before, array, tensor in zip(kept, (*X, y), tensors, strict=True):
        np.testing.assert_array_equal(before, array)
        np.testing.assert_array_equal(before, tensor)


def test_a_line_per_epoch_if_asked(capsys):
    X, y = tables(40)
    small(solver=AdamConfig(epochs=2, held_out=0.2), verbose=True).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("loss" in line and "held out" in line for line in lines)


def test_an_output_mode_can_be_chosen_and_has_a_default():
    X, y = tables(60)
    for mode in (None, 0, 1, 2):
        model = small(output_mode=mode).fit(X, y)
        assert model.module_.output_mode == (1 if mode is None else mode)
        assert model.predict(X).shape == (60, 2)
    flat = FunctionalCP([AGENTS, ACTIONS], rank=2, outputs=2, solver=QUICK).fit((X[0], X[2]), y)
    assert flat.module_.output_mode == 1


# What the door refuses

@pytest.mark.parametrize(("changes", "message"), [
    ({"rank": 0}, "rank: expected a whole number >= 1, got 0"),
    ({"rank": 2.5}, "rank: expected a whole number >= 1, got 2.5"),
    ({"members": 0}, "members: expected a whole number >= 1, got 0"),
    ({"outputs": 0}, "outputs: expected a whole number >= 1, got 0"),
    ({"modes": [STATE]}, "modes: expected at least 2, got 1"),
    ({"modes": [6, STATE, ACTIONS]}, r"modes\[0\]: expected Categorical, Fourier, Spline, Polynomial or Neural, got 6"),
    ({"output_mode": 3}, r"output_mode: expected 0\.\.2, got 3"),
    ({"output_mode": -1}, r"output_mode: expected 0\.\.2, got -1"),
])
def test_impossible_settings_are_refused_by_fit(changes, message):
    X, y = tables(20)
    with pytest.raises(ValueError, match=message):
        small(**changes).fit(X, y)


def change(k: int, where, value):
    def act(X, y):
        arrays = [np.array(a, dtype=float) for a in (*X, y)]
        arrays[k][where] = value
        return arrays[:3], arrays[3]
    return act


BAD_X = [
    (lambda X, y: (X[:2], y), "X: expected 3 coordinate arrays, one per mode, got 2"),
    (lambda X, y: ((*X, X[0]), y), "X: expected 3 coordinate arrays, one per mode, got 4"),
    (lambda X, y: ((X[0][:5], X[1], X[2]), y), r"X: expected coordinate arrays of one length, got \[5, 20, 20\]"),
    (lambda X, y: ([x[:0] for x in X], y[:0]), "X: expected at least one entry, got none"),
    (change(0, 3, np.nan), r"X\[0\]: 1 of 20 values are NaN or Inf"),
    (change(0, 3, 6), r"X\[0\]: expected integers 0\.\.5, got values 0\.\.6"),
    (change(0, 3, -1), r"X\[0\]: expected integers 0\.\.5, got values -1\.\."),
    (change(2, 3, 0.5), r"X\[2\]: expected integers 0\.\.2 for a Categorical mode, got fractions"),
    (change(1, (3, 1), np.inf), r"X\[1\]: 1 of 40 values are NaN or Inf, the first at \(3, 1\)"),
    (lambda X, y: ((X[0], X[1][:, :1], X[2]), y), r"X\[1\]: expected 2 columns for this Neural mode, got 1"),
    (lambda X, y: ((X[0], X[1][:, 0], X[2]), y), r"X\[1\]: expected axes \(B inputs\)"),
    (lambda X, y: ((X[0].astype(str), X[1], X[2]), y), r"X\[0\]: expected numbers, got an array of <U\d+; encode categories"),
    (lambda X, y: ((X[0].astype(object), X[1], X[2]), y), r"X\[0\]: expected numbers, got an array of object"),
]
BAD_Y = [
    (lambda X, y: (X, y[:5]), r"y: expected shape \(20, 2\) \(entries, outputs\), got \(5, 2\)"),
    (lambda X, y: (X, y[:, 0]), r"y: expected shape \(20, 2\) \(entries, outputs\), got \(20, 1\)"),
    (lambda X, y: (X, y[:, :, None]), r"y: expected shape \(20, 2\)"),
    (lambda X, y: (X, 1.0), r"y: expected shape \(20, 2\)"),
    (change(3, (7, 1), np.nan), r"y: 1 of 40 values are NaN or Inf, the first at \(7, 1\)"),
    (change(3, (7, 1), -np.inf), r"y: 1 of 40 values are NaN or Inf"),
    (lambda X, y: (X, y.astype(str)), "y: expected numbers, got an array of <U"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_X + BAD_Y)
def test_bad_entries_are_refused(spoil, message):
    X, y = spoil(*tables(20))
    with pytest.raises(ValueError, match=message):
        small().fit(X, y)
    with pytest.raises(ValueError, match=message):
        fitted_once(*tables()).score(X, y)


@pytest.mark.parametrize("dates", [np.array(["2024-01-01", "2024-01-02"]), pd.date_range("2024-01-01", periods=2)])
def test_dates_are_said_to_be_no_numbers_yet(dates):
    with pytest.raises(ValueError, match=r"X\[1\]: expected numbers, got .*; turn dates into numbers, such as days since"):
        FunctionalCP([Categorical(2), Spline(1)], rank=1).fit(([0, 1], dates), [1.0, 2.0])


def test_scikit_learns_loops_are_told_what_to_do_instead():
    X, y = tables(20)
    with pytest.raises(ValueError, match=r"FunctionalCP: expected to be fitted by hand, got .*; loop over KFold"):
        cross_val_score(small(), np.stack([X[0], X[2]], 1), y)


@pytest.mark.parametrize(("spoil", "message"), BAD_X)
def test_bad_coordinates_are_refused_by_predict(spoil, message):
    X, _ = spoil(*tables(20))
    for predict in (fitted_once(*tables()).predict, fitted_once(*tables()).predict_members):
        with pytest.raises(ValueError, match=message):
            predict(X)


def test_an_unfitted_model_says_so(tmp_path):
    X, y = tables(20)
    for call in (lambda: small().predict(X), lambda: small().predict_members(X), lambda: small().score(X, y),
                 lambda: small().save(tmp_path / "model")):
        with pytest.raises(ValueError, match="FunctionalCP: expected a fitted model, got one without data; call fit first"):
            call()
    assert list(tmp_path.iterdir()) == []
