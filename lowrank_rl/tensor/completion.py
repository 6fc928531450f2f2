"""CPCompletion: the scikit-learn door of discrete tensor completion.

    y = A_0[x_0, :] * A_1[x_1, :] * ... * A_K-1[x_K-1, :] summed over the rank (Kolda & Bader 2009, section 3)

fitted to the observed entries alone: nothing is ever put where an entry is missing, and no dense tensor is formed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from lowrank_rl import check
from lowrank_rl.tensor import entries
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed, sizes
from lowrank_rl.tensor.search import ASKED, INTERRUPTED, Run, enough, to_cp
from lowrank_rl.tensor.solvers import derivatives
from lowrank_rl.tensor.solvers.als import fill_empty_rows
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem
from lowrank_rl.tensor.stream import Stream

SOLVERS = ("als", "lm", "ccd")
INITS = ("spectral", "random")
ENGINES = ("local", "ray")
WILD = 2.0                 # times the largest value is more than a row's root mean square can be; good fits reach some 0.5
OUT_OF_REACH = 0.25        # of the values' sum of squares may be negative ones before a non-negative model is doubted
LIKELY_MODE = 10_000_000   # larger row numbers that are also 100 times the number of entries are labels, not rows


class CPCompletion(RegressorMixin, BaseEstimator):
    """Complete a tensor from some of its entries by a CP of low rank.

    >>> model = CPCompletion(rank=3).fit(X, y)      # X (B, K) integer coordinates, y (B,) values
    >>> model.predict(X_missing)                    # without forming the tensor

    Minimises, with y in units of its root mean square,

        1/2 sum_b weight[b] (y[b] - model(x[b]))^2 + 1/2 sum_k regularization[k] ||A_k||^2

    CP completion has local minima, so several starts run, on a sample if there are many entries, until the best is
    confirmed; the best then goes on with all entries. An entry may occur more than once: then it was measured more than
    once. Rows of a mode without any entry get the mean of the mode's other rows; ``unobserved_`` names them.

    A scikit-learn regressor: ``clone``, ``GridSearchCV``, ``cross_val_score`` and pipelines take it; pass ``shape`` there,
    since a fold may lack the last row of a mode, and ``cv=KFold(3, shuffle=True)``, since entries mostly come sorted, and
    folds of sorted ones are whole rows. Of ``check_estimator`` one check fails, and must:
    check_sample_weight_equivalence_on_dense_data passes fractions as coordinates. There is no ``set_output``, as in any
    regressor: it sets the container of transformed features, and this gives values.

    Args:
        rank: R, the number of terms.
        solver: "als" (alternating least squares, exact per row), "lm" (all factors at once, Levenberg-Marquardt; for
            nearly collinear terms), or "ccd" (coordinate descent, one term at a time; for large ranks).
        init: "spectral", then random starts, annealed where data are scarce; "random", those only; or a CP: this start
            alone, or first if it also gives the factors of ``fixed_modes`` to the other starts.
        n_restarts: starts at most.
        regularization: the ridge, >= 0; one number or one per mode. Noisy tables want more than the default, up to about 1:
            choose by held-out entries, as with ``GridSearchCV``.
        non_negative: factors >= 0; one bool or one per mode. Not for "lm".
        fixed_modes: modes whose factors stay as in the CP given as ``init`` (or in the last fit, with ``warm_start``).
        tol: a solver stops when a sweep lowers the loss by less than this share of it.
        max_iter: sweeps of one solver run, at most.
        shape: sizes of the modes; None: as far as the largest coordinates of the fit go.
        warm_start: begin where the last fit ended, if there is one, and nowhere else.
        random_state: seed; the same seed gives the same numbers on one machine.
        device: where sweeps with all entries run: "cpu" (compiled), or a torch device, with solver "als".
        engine: "local", or "ray": sweeps with all entries are shared among ``n_workers`` Ray processes, with solver "als".
        n_workers: of Ray. address: of its cluster; None: the one this process has joined, or else one on this machine.
        verbose: 1: a line per start; 2: a line per sweep.
        callback: called with (entry of the history, CP so far) after each sweep, also while starts are sought, mended and
            annealed; losses are then those on the sample. True stops, with the CP of the least loss so far as the fit.
        keep_interrupted: on Ctrl-C keep that too as the fit, instead of raising. Before the first sweep it raises.

    Learned:
        cp_: the CP. factors_: its factors, (I_k, R) each, columns of length 1 unless modes are fixed.
        shape_: (K,). unobserved_: for each mode the rows without data.
        history_: a dict per sweep of the last solver run, the one with all entries from the best start (iteration, loss in
            squared units of y, seconds, and the solver's own); empty if the fit was stopped before.
        starts_: a dict per start that ended (kind, loss on the sample, agreed: how many ended in the best so far, seconds);
            what happens within a start only the callback hears.
        stopped_: why the fit ended. converged_: whether it ended by ``tol``. n_iter_: sweeps in ``history_``.
        n_features_in_: K. feature_names_in_: the names of X's columns, if X was a DataFrame.
    """

    def __init__(self, rank: int = 2, *, solver: str = "als", init: str | CP = "spectral", n_restarts: int = 20,
                 regularization: float | Sequence[float] = 1e-3, non_negative: bool | Sequence[bool] = False,
                 fixed_modes: Sequence[int] = (), tol: float = 1e-6, max_iter: int = 500,
                 shape: Sequence[int] | None = None, warm_start: bool = False, random_state: int = 0, device: str = "cpu",
                 engine: str = "local", n_workers: int = 2, address: str | None = None, verbose: int = 0,
                 callback: Callable[[dict, CP], bool | None] | None = None, keep_interrupted: bool = False) -> None:
        self.rank = rank
        self.solver = solver
        self.init = init
        self.n_restarts = n_restarts
        self.regularization = regularization
        self.non_negative = non_negative
        self.fixed_modes = fixed_modes
        self.tol = tol
        self.max_iter = max_iter
        self.shape = shape
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.engine = engine
        self.n_workers = n_workers
        self.address = address
        self.verbose = verbose
        self.callback = callback
        self.keep_interrupted = keep_interrupted

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to values y (B,) at coordinates X (B, K), or to an ``Observed`` or a ``Stream``, which hold both and weights.

        An entry of weight 2 counts as if it were there twice, one of weight 0 as if it were not there. A Stream's entries
        need not fit in memory: they are sorted into temporary files.

        Raises:
            ValueError: coordinates that are negative, fractional or outside ``shape``, NaN or Inf, no entries, sizes that
                disagree, weights below 0 or all 0, an unknown name, a rank below 1, fixed modes without factors. An
                earlier fit then stays as it was.
        """
        before = dict(vars(self))
        try:
            stream = X if isinstance(X, Stream) else None
            parts = self._entries(X, y, sample_weight) if stream is None else self._sample_of(stream, y, sample_weight)
            scale = entries.root_mean_square(*parts[1:3]) if stream is None else stream.root_mean_square()
            problem, start = self._problem(*parts, scale)
            self._check_engine(stream)
            self._warn_of_little_data(problem, len(problem.value if stream is None else stream))
            self._warn_of_negative_values(problem, scale)
            run = Run(self, problem, scale, None if stream is None else stream.scaled(scale))
            self._keep(run, run.solve(start))
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def predict(self, X: Any) -> Any:
        """Values at coordinates X (B, K), or at those of an ``Observed``: (B,). Tensors give a tensor back.

        Raises:
            ValueError: coordinates that are negative, fractional or outside the fitted shape, or of other modes.
        """
        check_is_fitted(self)
        given = X.index if isinstance(X, Observed) else X
        array = entries.matrix(given)
        validate_data(self, given, reset=False, skip_check_array=True)   # the names and the number of columns
        index = entries.columns(array, self.shape_, "the fitted mode has no more rows; pass shape= to reserve some")
        rows = np.concatenate([self.factors_[0] * self.cp_.weights, *self.factors_[1:]])
        first = np.cumsum(self.shape_) - self.shape_
        value = np.empty(index.shape[1])
        derivatives.predict(index, first, rows, value)
        return X.new_tensor(value, dtype=X.double().dtype) if hasattr(X, "new_tensor") else value   # a torch tensor

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """R2, the share of y's variance that the model explains, at coordinates X (B, K) or on an ``Observed``."""
        if isinstance(X, Observed):
            _refuse_second_values(y)
            X, y, sample_weight = X.index, X.value, X.weight if sample_weight is None else sample_weight
        value = entries.values(y)
        weight = None if sample_weight is None else entries.weights(sample_weight, len(value))
        return super().score(X.detach().cpu().numpy() if hasattr(X, "detach") else X, value, weight)

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one safetensors file; all but the callback.

        Raises:
            ValueError: the place cannot be written; an older file of that name is untouched.
            NotFittedError: not fitted.
        """
        import torch  # here, because it takes a second and 200 MB

        from lowrank_rl.tensor import io

        check_is_fitted(self)
        params = {**self.get_params(), "callback": None, "device": "cpu"}
        arrays = {f"cp {name}": array for name, array in _parts(self.cp_).items()}
        if isinstance(self.init, CP):
            arrays |= {f"init {name}": array for name, array in _parts(self.init).items()}
            params["init"] = None
        arrays |= {f"unobserved {k}": rows for k, rows in enumerate(self.unobserved_)}
        params = {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in params.items()}
        learned = {name: getattr(self, name) for name in ("history_", "starts_", "stopped_", "converged_", "n_iter_")}
        names = [str(name) for name in getattr(self, "feature_names_in_", ())]
        io.save(path, "CPCompletion", {name: torch.from_numpy(array) for name, array in arrays.items()},
                {"params": params, "learned": learned, "names": names, "modes": len(self.shape_)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote; predictions are the same bit for bit.

        Raises:
            ValueError: missing, corrupt or truncated file, or one of another kind or schema.
        """
        from lowrank_rl.tensor import io  # here, because it brings torch

        tensors, header = io.load(path, "CPCompletion")
        try:
            K = header["modes"]
            cps = {name: CP(tensors[f"{name} weights"], tuple(tensors[f"{name} factor {k}"] for k in range(K)))
                   for name in ("cp", "init") if f"{name} weights" in tensors}
            params = {name: tuple(x) if isinstance(x, list) else x for name, x in header["params"].items()}
            model = cls(**{**params, **({"init": cps["init"]} if "init" in cps else {})})
            vars(model).update(header["learned"], cp_=cps["cp"], factors_=cps["cp"].factors, shape_=cps["cp"].shape,
                               unobserved_=tuple(tensors[f"unobserved {k}"].numpy() for k in range(K)), n_features_in_=K)
            if header["names"]:
                model.feature_names_in_ = np.array(header["names"], dtype=object)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a whole CPCompletion file, got one with missing or odd parts ({error}); "
                             "restore it or fit again") from error
        return model

    @property
    def continues(self) -> bool:
        """Whether a fit begins where the last one ended."""
        return self.warm_start and hasattr(self, "cp_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True     # coordinates are labels, not quantities
        tags.input_tags.positive_only = True
        tags.regressor_tags.poor_score = True  # a value at coordinates never seen cannot be known
        return tags

    def _entries(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """index (K, B) int32, value (B,), weight (B,) or None, and the shape; checked."""
        shape = None if self.shape is None else sizes(self.shape)
        if shape is not None and max(shape) > entries.LARGEST_MODE:
            raise ValueError(f"shape: expected modes of at most {entries.LARGEST_MODE} rows, got {shape}")
        if isinstance(X, Observed):
            _refuse_second_values(y)
            if shape not in (None, X.shape):
                raise ValueError(f"shape: expected that of the Observed, {X.shape}, or None, got {self.shape}")
            X, y, shape, sample_weight = X.index, X.value, X.shape, X.weight if sample_weight is None else sample_weight
        array = entries.matrix(X)
        if array.shape[1] < 2:
            raise ValueError(f"X: expected a column for each mode, got {array.shape[1]} feature(s) (shape={array.shape}) while "
                             "a minimum of 2 is required.")   # scikit-learn's words
        if shape is not None and array.shape[1] != len(shape):
            raise ValueError(f"X: expected one column for each of {len(shape)} modes, got {array.shape[1]}")
        index = entries.columns(array, shape, "as the given shape has it")
        value = entries.values(y)
        check.shapes(X=(index, "K B"), y=(value, "B"))
        weight = None if sample_weight is None else entries.weights(sample_weight, len(value))
        if shape is None:
            shape = tuple(int(column.max()) + 1 for column in index)
            k = int(np.argmax(shape))
            if shape[k] > max(LIKELY_MODE, 100 * len(value)):
                raise ValueError(f"X: expected row numbers, got {shape[k] - 1} in column {k} of only {len(value)} entries; "
                                 "number labels with Observed.from_table, or pass shape= if these are rows")
        if weight is not None and not weight.all():
            index, value, weight = np.compress(weight > 0, index, axis=1), value[weight > 0], weight[weight > 0]
        validate_data(self, X, skip_check_array=True)   # keeps the names and the number of columns
        return index, value, weight, shape

    def _sample_of(self, stream: Stream, y: Any,
                   sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """As many of a stream's entries as suffice to find the terms."""
        _refuse_second_values(y)
        if sample_weight is not None:
            raise ValueError("sample_weight: expected None beside a Stream, got an array; give the Stream weights")
        if self.shape is not None and sizes(self.shape) != stream.shape:
            raise ValueError(f"shape: expected that of the Stream, {stream.shape}, or None, got {self.shape}")
        check.count("rank", self.rank)
        count = min(len(stream), enough(self.rank * (sum(stream.shape) - len(stream.shape) + 1)))
        index, value, weight = stream.sample(count, seed=self.random_state)
        index = np.ascontiguousarray(index.T).T   # in the order of ``entries.columns``
        vars(self).pop("feature_names_in_", None)
        self.n_features_in_ = len(stream.shape)
        return index, value, weight, stream.shape

    def _problem(self, index: np.ndarray, value: np.ndarray, weight: np.ndarray | None, shape: tuple[int, ...],
                 scale: float) -> tuple[Problem, Factors | None]:
        """The problem, and a given start in units of ``scale``."""
        self._check_parameters()
        K = len(shape)
        fixed = entries.fixed(self.fixed_modes, K)
        problem = Problem(index, value, weight, shape, self.rank,
                          entries.per_mode("regularization", self.regularization, K, float),
                          entries.per_mode("non_negative", self.non_negative, K, bool), fixed)
        if self.solver == "lm" and any(problem.non_negative):
            raise ValueError('non_negative: expected False with solver "lm", got True; use solver "als" or "ccd"')
        given = self.cp_ if self.continues else self.init if isinstance(self.init, CP) else None
        if given is not None:
            return problem, _start_from("warm_start" if self.continues else "init", given, problem, scale)
        if any(fixed):
            raise ValueError("fixed_modes: expected init=CP(...) that holds their factors, or warm_start after a fit, got "
                             f"init={self.init!r}")
        return problem, None

    def _check_parameters(self) -> None:
        for name in ("rank", "n_restarts", "max_iter"):
            check.count(name, getattr(self, name))
        check.count("random_state", self.random_state, low=0)
        check.known("solver", self.solver, SOLVERS)
        if not isinstance(self.init, CP):
            check.known("init", self.init, (*INITS, "a CP"))
        if self.device != "cpu":
            check.device(self.device)
        if isinstance(self.tol, bool) or not isinstance(self.tol, Real) or not 0 <= self.tol < 1:
            raise ValueError(f"tol: expected a share in [0, 1), got {self.tol!r}")
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback: expected a function of (entry, cp), or None, got {self.callback!r}")

    def _check_engine(self, stream: Stream | None) -> None:
        """Who can sum over the entries, for which solver."""
        check.known("engine", self.engine, ENGINES)
        check.count("n_workers", self.n_workers)
        if stream is None and self.engine == "local" and self.device == "cpu":
            return
        what = "a Stream" if stream is not None else f"engine {self.engine!r}" if self.engine != "local" else \
            f"device {self.device!r}"
        if self.solver != "als":
            raise ValueError(f'solver: expected "als" with {what}, got {self.solver!r}')
        if self.device != "cpu" and (stream is not None or self.engine != "local"):
            raise ValueError(f'device: expected "cpu" with {what}, got {self.device!r}')

    def _keep(self, run: Run, fit: Fit) -> None:
        """The learned attributes."""
        problem, scale, seen = run.problem, run.scale, run.seen()
        self.unobserved_ = tuple(np.flatnonzero(~mode) for mode in seen)
        self.cp_ = to_cp(fill_empty_rows(fit.factors, seen, problem.fixed), scale, problem)
        self.factors_, self.shape_ = self.cp_.factors, problem.shape
        self.history_ = [{**entry, "loss": entry["loss"] * scale * scale} for entry in fit.history]
        self.starts_, self.stopped_, self.converged_ = run.starts, fit.stopped, fit.converged
        self.n_iter_ = max(1, fit.history[-1]["iteration"]) if fit.history else 1
        self._warn_of_the_outcome(run)

    def _warn_of_the_outcome(self, run: Run) -> None:
        for k, missing in enumerate(self.unobserved_):
            if len(missing):
                warnings.warn(f"mode {k}: {len(missing)} of {self.shape_[k]} rows have no observed entry ({_some(missing)}); "
                              "they get the mean of the others (see unobserved_)", stacklevel=4)
        if self.stopped_ in (ASKED, INTERRUPTED):
            return
        if not self.converged_:
            warnings.warn(f"the fit {self.stopped_}; raise max_iter or tol", ConvergenceWarning, stacklevel=4)
        if run.unconfirmed and self.n_restarts > 1:
            found = f"{self.starts_[-1]['agreed']} of {len(self.starts_)} starts found the best fit"
            warnings.warn(f"{found}, too few to be sure: it may be a local minimum; lower the rank, raise regularization or "
                          "n_restarts", ConvergenceWarning, stacklevel=4)
        value, scale = run.problem.value, run.scale
        largest, rows = max(value.max(), -value.min()) / scale, max(_row_sizes(self.cp_, scale), key=np.max)
        if rows.max() > WILD * largest:
            warnings.warn(f"in {np.count_nonzero(rows > WILD * largest)} of {len(rows)} rows of a mode the root mean square of "
                          f"what is predicted is beyond all known values, by a factor of up to {rows.max() / largest:.2g}: the "
                          "data leave it open; raise regularization or lower the rank", ConvergenceWarning, stacklevel=4)

    def _warn_of_little_data(self, problem: Problem, count: int) -> None:
        unknown = problem.free_numbers
        if count < unknown:
            warnings.warn(f"rank {self.rank} has {unknown} free numbers, more than the {count} observed entries: "
                          "they cannot be determined; lower the rank, or choose regularization by cross-validation",
                          stacklevel=3)

    def _warn_of_negative_values(self, problem: Problem, scale: float) -> None:
        """Where no factor may be negative, no prediction is: what values below 0 add to the squares stays unexplained."""
        if not all(problem.non_negative) or problem.value.min() >= 0:
            return
        below = entries.root_mean_square(np.minimum(problem.value, 0.0), problem.weight)
        share = (below / scale) ** 2
        if share > OUT_OF_REACH:
            remedy = "pass non_negative=False" + (", or fit -y" if problem.value.max() <= 0 else "")
            warnings.warn(f"non_negative: {share:.0%} of the values' sum of squares are negative values, where such a model "
                          f"can say no less than 0; {remedy}", stacklevel=3)


def _start_from(name: str, cp: CP, problem: Problem, scale: float) -> Factors:
    """A CP's factors, its weights and the unit put into a free mode, one that may change signs if there is one."""
    if cp.shape != problem.shape or cp.rank != problem.rank:
        raise ValueError(f"{name}: expected a CP of shape {problem.shape} and rank {problem.rank}, got {cp.shape} and rank "
                         f"{cp.rank}" + ("; fit anew with warm_start=False" if name == "warm_start" else ""))
    start = [factor.copy() for factor in cp.factors]
    free = [k for k, fixed in enumerate(problem.fixed) if not fixed]
    start[min(free, key=lambda k: problem.non_negative[k])] *= cp.weights / scale
    if any(n and (f < 0).any() for n, f in zip(problem.non_negative, start, strict=True)):
        raise ValueError(f"{name}: expected factors >= 0 in the non-negative modes, got negative ones; take their absolute "
                         "values")
    return tuple(start)


def _row_sizes(cp: CP, scale: float) -> list[np.ndarray]:
    """For each mode, the root mean square of the tensor in each of its rows, over ``scale``: (I_k,)."""
    grams = [factor.T @ factor / len(factor) for factor in cp.factors]
    weights, slices = cp.weights / scale, []
    for k, factor in enumerate(cp.factors):
        gram = np.outer(weights, weights) * math.prod(g for j, g in enumerate(grams) if j != k)
        slices.append(np.sqrt(np.maximum(np.einsum("ir,ir->i", factor @ gram, factor), 0.0)))
    return slices


def _some(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def _parts(cp: CP) -> dict[str, np.ndarray]:
    return {"weights": cp.weights, **{f"factor {k}": factor for k, factor in enumerate(cp.factors)}}


def _refuse_second_values(y: Any) -> None:
    if y is not None:
        raise ValueError("y: expected None beside an Observed, which holds the values, got an array; pass one of them")
