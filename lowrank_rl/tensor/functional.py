"""Functional CP: a tensor whose modes may be categories or continuous coordinates.

    y[d] = center[d] + scale[d] * sum_r  prod_k f_k(x_k)[r]          (one f_k also carries the output axis d)

Each f_k is a module (a table of rows, a network, ...). A lookup table in every mode is the ordinary CP decomposition
(Kolda & Bader 2009, section 3); a table for agents and networks for states and actions is PerSim (NeurIPS 2021,
equation 2 and section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_rl import check, rng
from lowrank_rl.tensor import io
from lowrank_rl.tensor.bases import Expansion
from lowrank_rl.tensor.functional_adam import AdamConfig, fit_adam
from lowrank_rl.tensor.functional_als import ALSConfig, fit_als
from lowrank_rl.tensor.modes import KINDS, Categorical, Mode, Neural, describe, from_description

TRIED = 12_500    # entries at most on which solvers are compared
EXACT = tuple(ALSConfig(regularization=ridge, spare=1) for ridge in (1e-6, 1e-9, 1e-4, 1e-2))   # what to choose from
BESIDE_NETWORKS = AdamConfig(), ALSConfig(regularization=1e-2)                         # the same where a mode is Neural


class FunctionalModule(nn.Module):
    """The sum over the rank of products of mode functions, for M members at once."""

    def __init__(self, modes: Sequence[Mode], rank: int, outputs: int, output_mode: int, members: int, *,
                 generator: torch.Generator) -> None:
        super().__init__()
        self.rank, self.outputs, self.output_mode, self.members = rank, outputs, output_mode, members
        self.modes = nn.ModuleList(
            mode.build(members, rank * outputs if k == output_mode else rank, generator=generator)
            for k, mode in enumerate(modes))
        self.inputs = [0 if isinstance(mode, Categorical) else mode.inputs for mode in modes]
        for k, columns in enumerate(self.inputs):
            self.register_buffer(f"center{k}", torch.zeros(columns, dtype=torch.float64))
            self.register_buffer(f"scale{k}", torch.ones(columns, dtype=torch.float64))
        self.register_buffer("center", torch.zeros(outputs, dtype=torch.float64))   # float64, so that large offsets
        self.register_buffer("scale", torch.ones(outputs, dtype=torch.float64))     # (time stamps) lose nothing

        self.register_buffer("noise", torch.ones((), dtype=torch.float64))   # variance of a scaled output's error

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def prepare(self, coordinates: Sequence[Tensor], target: Tensor, normalize: bool) -> None:
        """Learn what must be known before a fit: centres and spreads (a constant column keeps spread 1), ranges, bandwidths."""
        for k, x in enumerate(coordinates):
            if self.inputs[k] and normalize:
                _standardize(x, getattr(self, f"center{k}"), getattr(self, f"scale{k}"))
            if isinstance(self.modes[k], Expansion):
                self.modes[k].basis.prepare(self.scaled(k, x).double())
        if normalize:
            _standardize(target, self.center, self.scale)

    def scaled(self, k: int, x: Tensor) -> Tensor:
        """Mode k's coordinate as its module wants it."""
        return ((x - getattr(self, f"center{k}")) / getattr(self, f"scale{k}")).to(self.dtype) if self.inputs[k] else x

    def factor(self, k: int, x: Tensor) -> Tensor:
        """Mode k's factors at raw coordinates (B, ...) or (M, B, ...): (M, B, R), or (M, B, D, R) with the outputs."""
        x = self.scaled(k, x)
        x = x.expand(self.members, *x.shape) if x.ndim == (2 if self.inputs[k] else 1) else x
        return self._factor(k, x)

    def _factor(self, k: int, x: Tensor) -> Tensor:
        factor = self.modes[k](x)
        return factor.unflatten(-1, (self.outputs, self.rank)) if k == self.output_mode else factor

    def forward(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Scaled coordinates, each (M, B, ...), to scaled outputs (M, B, D): what a solver sees."""
        rows: Tensor | None = None
        for k, x in enumerate(coordinates):
            if k != self.output_mode:
                factor = self._factor(k, x)
                rows = factor if rows is None else rows * factor
        out = self._factor(self.output_mode, coordinates[self.output_mode])
        return out.sum(-1) if rows is None else (out * rows.unsqueeze(-2)).sum(-1)

    def predict(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Raw coordinates, each (B, ...), to raw outputs (M, B, D)."""
        scaled = [self.scaled(k, x) for k, x in enumerate(coordinates)]
        return self.center + self.scale * self([x.expand(self.members, *x.shape) for x in scaled])


@dataclass(eq=False)
class FunctionalCP:
    """Learn a tensor with categorical and continuous modes from observed entries; predict it anywhere.

    >>> model = FunctionalCP([Categorical(500), Neural(2, hidden=(256,)), Categorical(3)], rank=3, outputs=2)
    >>> model.fit((agent, state, action), delta).predict((agent, state, action))

    Learned: ``module_`` (torch), ``solver_`` (what fitted it), ``history_`` (a dict per epoch or sweep), ``stopped_`` (why
    training ended), ``n_iter_``, ``fitted_params_`` (the parameters as they were then).
    Arrays may be NumPy, pandas or torch; predictions come back as tensors if coordinates were tensors.
    scikit-learn's ``clone`` works, but ``cross_val_score`` and ``GridSearchCV`` cannot cut X, one array per mode, into folds:

    >>> for known, held in KFold(5, shuffle=True).split(y):
    ...     clone(model).fit([x[known] for x in X], y[known]).score([x[held] for x in X], y[held])
    """
    modes: Sequence[Mode]              # Categorical, Fourier, Spline, Polynomial or Neural, at least two
    rank: int                          # R, the number of terms
    outputs: int = 1                   # D, the number of values at each coordinate
    output_mode: int | None = None     # which mode carries the output axis; None: the first continuous one, else the last
    members: int = 1                   # M, models that differ in start and minibatches only, trained side by side
    normalize: bool = True             # standardise continuous coordinates and targets; the shift can cost one rank
    solver: AdamConfig | ALSConfig | str | None = None   # None: exact solves, their regularization by the error of a held-out
    #                  fifth; AdamConfig() if a mode is Neural. "auto": by the same error Adam or exact solves there, too
    random_state: int = 0              # seed; the same seed gives the same model on one machine
    device: str = "cpu"                # where to fit, any torch device
    verbose: bool = False              # print a line per epoch

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's ``clone`` asks for them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments by name."""
        for name, value in params.items():
            check.known("parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def fit(self, X: Sequence[Any], y: Any, *, progress: Callable[[dict], None] | None = None,
            checkpoint: str | Path | None = None) -> Self:
        """Fit to y (B,) or (B, D) at coordinates X, one array per mode: (B,) integers or (B, inputs) floats.

        Args:
            progress: called with each epoch's entry of the history.
            checkpoint: a file in which unfinished training is kept, so that the same call resumes after a kill.

        Raises:
            ValueError: shapes that disagree, NaN or Inf, an index out of range, no entries, a rank or members below 1. An
                earlier fit then stays as it was.
        """
        output_mode = self._check_parameters()
        coordinates, target = self._check_entries(X, y, self.modes, self.outputs)
        module = FunctionalModule(self.modes, self.rank, self.outputs, output_mode, self.members,
                                  generator=rng.stream(self.random_state, "functional", "init"))
        solver = self._solver(coordinates, target)
        if isinstance(solver, ALSConfig) and not self._has_networks():
            module.double()
        module.prepare(coordinates, target, self.normalize)
        target = ((target - module.center) / module.scale).to(self.device, module.dtype)
        scaled = [module.scaled(k, x).to(self.device) for k, x in enumerate(coordinates)]
        module.to(self.device)
        common = {"generator": rng.stream(self.random_state, "functional", "order"),
                  "progress": progress or (_print_epoch if self.verbose else None)}
        if isinstance(solver, AdamConfig):
            fit = fit_adam(module, scaled, target, solver, checkpoint=checkpoint, **common)
            module.noise.fill_(fit.history[-1]["loss"])
        else:
            fit = fit_als(module, scaled, target, solver, checkpoint=checkpoint, **common)
        self.module_, self.solver_, self.history_, self.stopped_ = module, solver, fit.history, fit.stopped
        self.n_iter_, self.fitted_params_ = len(fit.history), self.get_params()
        return self

    def predict(self, X: Sequence[Any]) -> Any:
        """The members' mean at coordinates X: (B,) if outputs is 1, else (B, D)."""
        return self._give_back(X, self._predict(X).mean(0))

    def predict_members(self, X: Sequence[Any]) -> Any:
        """Each member's own prediction: (M, B), or (M, B, D)."""
        return self._give_back(X, self._predict(X))

    def score(self, X: Sequence[Any], y: Any) -> float:
        """R2 over all outputs together, 1 - sum of squared errors / sum of squared deviations from the mean."""
        self._check_fitted()
        _, target = self._check_entries(X, y)
        prediction = self._predict(X).mean(0).double().cpu().reshape(target.shape)
        residual = (target - prediction).square().sum()
        return float(1 - residual / (target - target.mean(0)).square().sum())

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one safetensors file.

        Raises:
            ValueError: not fitted, or the place cannot be written; an older file of that name is untouched.
        """
        io.save(path, "FunctionalCP", *self.pack())

    def pack(self) -> tuple[dict[str, Tensor], dict]:
        """The fitted model as tensors and a JSON-able header, for ``tensor.io``."""
        self._check_fitted()
        params = {k: v for k, v in self.fitted_params_.items() if k not in ("modes", "solver")}
        solver = {"kind": type(self.solver_).__name__, **asdict(self.solver_)}
        header = {"params": {**params, "device": "cpu"}, "modes": [describe(mode) for mode in self.fitted_params_["modes"]],
                  "solver": solver, "history": self.history_, "stopped": self.stopped_}
        return self.module_.state_dict(), header

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ValueError: missing, corrupt or truncated file, or one of another kind or schema.
        """
        return cls.unpack(path, *io.load(path, "FunctionalCP"))

    @classmethod
    def unpack(cls, path: str | Path, tensors: dict[str, Tensor], header: dict) -> Self:
        """The inverse of ``pack``; ``path`` is for messages.

        Raises:
            ValueError: parts are missing or odd.
        """
        try:
            settings = dict(header["solver"])
            solver = {"AdamConfig": AdamConfig, "ALSConfig": ALSConfig}[settings.pop("kind", "AdamConfig")](**settings)
            model = cls([from_description(m) for m in header["modes"]], solver=solver, **header["params"])
            module = FunctionalModule(model.modes, model.rank, model.outputs, model._check_parameters(), model.members,
                                      generator=rng.stream(0))
            for name, parameter in module.named_parameters():
                parameter.data = parameter.data.to(tensors[name].dtype)
            tensors.setdefault("noise", torch.ones((), dtype=torch.float64))   # files from before models kept it
            module.load_state_dict(tensors)
            history, stopped = header["history"], header["stopped"]
        except (KeyError, TypeError, RuntimeError, StopIteration) as error:
            raise ValueError(f"{path}: expected a whole FunctionalCP file, got one with missing or odd parts "
                             f"({error}); restore it or fit again") from error
        model.solver_ = solver
        model.module_, model.history_, model.stopped_, model.n_iter_ = module, history, stopped, len(history)
        model.fitted_params_ = model.get_params()
        return model

    def _check_parameters(self) -> int:
        """Refuse impossible settings; the index of the mode that carries the outputs."""
        for name, value in (("rank", self.rank), ("outputs", self.outputs), ("members", self.members)):
            check.count(name, value)
        check.count("random_state", self.random_state, low=0)
        check.device(self.device)
        if not isinstance(self.solver, AdamConfig | ALSConfig | None) and self.solver != "auto":
            raise ValueError(f"solver: expected AdamConfig(...), ALSConfig(...), 'auto' or None, got {self.solver!r}")
        if len(self.modes) < 2:
            raise ValueError(f"modes: expected at least 2, got {len(self.modes)}")
        for k, mode in enumerate(self.modes):
            if not isinstance(mode, Mode):
                *others, last = KINDS
                kinds = f"{', '.join(others)} or {last}"
                raise ValueError(f"modes[{k}]: expected {kinds}, got {mode!r}")
        if self.output_mode is None:
            continuous = [k for k, mode in enumerate(self.modes) if not isinstance(mode, Categorical)]
            return continuous[0] if continuous else len(self.modes) - 1
        if self.output_mode not in range(len(self.modes)):
            raise ValueError(f"output_mode: expected 0..{len(self.modes) - 1}, got {self.output_mode}")
        return self.output_mode

    def _has_networks(self) -> bool:
        return any(isinstance(mode, Neural) for mode in self.modes)

    def _solver(self, coordinates: list[Tensor], target: Tensor) -> AdamConfig | ALSConfig:
        """The solver to fit by."""
        if isinstance(self.solver, AdamConfig | ALSConfig):
            return self.solver
        candidates = BESIDE_NETWORKS if self._has_networks() else EXACT
        if (self._has_networks() and self.solver is None) or len(target) < 5:
            return candidates[0]
        order = torch.randperm(len(target), generator=rng.stream(self.random_state, "functional", "auto"))
        order = order[:TRIED]
        held_out, known = order[:len(order) // 5], order[len(order) // 5:]
        errors = []
        for candidate in candidates:
            trial = type(self)(**{**self.get_params(), "solver": candidate, "members": 1, "verbose": False})
            trial.fit([x[known] for x in coordinates], target[known])
            prediction = trial._predict([x[held_out] for x in coordinates])[0].reshape(len(held_out), -1)
            errors.append(float((prediction.cpu() - target[held_out]).square().mean()))
        return candidates[int(np.argmin(errors))]

    def _check_coordinates(self, X: Sequence[Any], modes: Sequence[Mode] | None = None) -> list[Tensor]:
        """One tensor per mode, as the modes want them: those of the fit unless others are given."""
        modes = self.fitted_params_["modes"] if modes is None else modes
        if not isinstance(X, Sequence) or len(X) != len(modes):
            got = len(X) if isinstance(X, Sequence) else type(X).__name__
            raise ValueError(f"X: expected {len(modes)} coordinate arrays, one per mode, got {got}")
        coordinates = [mode.coordinate(f"X[{k}]", _tensor(f"X[{k}]", x, mode))
                       for k, (mode, x) in enumerate(zip(modes, X, strict=True))]
        lengths = {len(x) for x in coordinates}
        if len(lengths) > 1:
            raise ValueError(f"X: expected coordinate arrays of one length, got {[len(x) for x in coordinates]}")
        if 0 in lengths:
            raise ValueError("X: expected at least one entry, got none")
        return coordinates

    def _check_entries(self, X: Sequence[Any], y: Any, modes: Sequence[Mode] | None = None,
                       outputs: int | None = None) -> tuple[list[Tensor], Tensor]:
        coordinates = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in self._check_coordinates(X, modes)]
        outputs = self.module_.outputs if outputs is None else outputs
        target = _tensor("y", y).cpu().double()
        target = target[:, None] if target.ndim == 1 else target
        if target.shape != (len(coordinates[0]), outputs):
            raise ValueError(f"y: expected shape ({len(coordinates[0])}, {outputs}) (entries, outputs), "
                             f"got {tuple(target.shape)}")
        check.finite("y", target)
        return coordinates, target

    @torch.no_grad()
    def _predict(self, X: Sequence[Any]) -> Tensor:
        self._check_fitted()
        coordinates = [x.to(self.module_.center.device) for x in self._check_coordinates(X)]
        chunks = zip(*(x.split(65536) for x in coordinates), strict=True)   # bounds the memory of hidden layers
        out = torch.cat([self.module_.predict(chunk) for chunk in chunks], dim=1)
        return out.squeeze(-1) if self.module_.outputs == 1 else out

    @staticmethod
    def _give_back(X: Sequence[Any], out: Tensor) -> Any:
        tensors = [x for x in X if isinstance(x, Tensor)]
        return out.to(tensors[0].device) if tensors else out.cpu().numpy()

    def _check_fitted(self) -> None:
        if not hasattr(self, "module_"):
            raise ValueError("FunctionalCP: expected a fitted model, got one without data; call fit first")

    def __sklearn_tags__(self) -> None:
        raise ValueError("FunctionalCP: expected to be fitted by hand, got a call from scikit-learn, which cannot cut one "
                         "array per mode into folds; loop over KFold(5, shuffle=True).split(y) as its docstring shows")


def check_fitted(model: Any) -> None:
    """Refuse what is no FunctionalCP, and one that was not fitted."""
    if not isinstance(model, FunctionalCP):
        raise ValueError(f"model: expected a FunctionalCP, got {type(model).__name__}; a table of categories is one, too: fit "
                         "FunctionalCP([Categorical(n) for n in shape], rank=R) to its entries")
    model._check_fitted()


def _tensor(name: str, x: Any, mode: Mode | None = None) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().contiguous()   # equal numbers, equal bits, whatever the layout in memory
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        remedy = "convert them" if mode is None else "encode categories as integers 0..n-1" if isinstance(mode, Categorical) \
            else "turn dates into numbers, such as days since the first, or make this mode a Categorical"
        raise ValueError(f"{name}: expected numbers, got an array of {array.dtype}; {remedy}")
    return torch.from_numpy(np.array(array, order="C"))


def _standardize(x: Tensor, center: Tensor, scale: Tensor) -> None:
    size = x.abs().amax(0)                       # first, so that squares of huge or tiny numbers stay numbers
    size = torch.where(size > 0, size, torch.ones_like(size))
    center.copy_(size * (x / size).mean(0))
    spread = (x / size).std(0) if len(x) > 1 else torch.zeros_like(x[0])
    varies = spread > 1e-12                      # a constant column's spread is rounding, rarely exactly 0
    scale.copy_(torch.where(varies, size * spread, torch.ones_like(spread)))


def _print_epoch(entry: dict) -> None:
    held_out = "" if entry["held_out"] is None else f"  held out {entry['held_out']:.3e}"
    print(f"epoch {entry['epoch']:4d}  loss {entry['loss']:.3e}{held_out}  {entry['seconds']:.1f} s")
