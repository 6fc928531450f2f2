"""Runs the code of completion.md and writes what it printed back into the text: `python docs/tutorials/completion.py`.

Each ```python block is run in one namespace; a ```text or table part between <!--output--> and <!--end--> after it is replaced
by what the block printed, a number between <!--=expression--> and <!--end--> by the expression's value. Below: the
comparison with baselines that the text calls.
"""

import contextlib
import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr
from tensorly import cp_to_tensor
from tensorly.decomposition import non_negative_parafac, parafac

from lowrank_rl.tensor import CPCompletion, Observed

TEXT = Path(__file__).with_name("completion.md")
PARTS = re.compile(r"```python\n(?P<code>.*?)```\n|<!--output-->\n(?P<output>.*?)<!--end-->"
                   r"|<!--=(?P<value>.*?)-->.*?<!--end-->", re.DOTALL)


def code_blocks(text: str) -> list[str]:
    """The code of the text, block by block."""
    return [match["code"] for match in PARTS.finditer(text) if match["code"] is not None]


def run(text: str, blocks: int | None = None) -> str:
    """The text with the outputs and numbers of its own code; only the first blocks if a number is given."""
    namespace: dict = {"__name__": "tutorial"}
    began = time.process_time()
    printed, ran, pieces, end = "", 0, [], 0
    for match in PARTS.finditer(text):
        if match["code"] is not None:
            if blocks is not None and ran == blocks:
                break
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(match["code"], f"block {ran + 1} of completion.md", "exec"), namespace)
            printed, ran, new = out.getvalue(), ran + 1, match[0]
            print(f"block {ran}: {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
        elif match["output"] is not None:
            table = printed.startswith("|")
            new = f"<!--output-->\n{printed}<!--end-->" if table else f"<!--output-->\n```text\n{printed}```\n<!--end-->"
        else:
            new = f"<!--={match['value']}-->{eval(match['value'], namespace)}<!--end-->"
        pieces += [text[end:match.start()], new]
        end = match.end()
    return "".join(pieces) + text[end:]


def compare(splits: dict[str, Callable[[int], tuple[Observed, Observed]]], model: CPCompletion, seeds: int = 5) -> None:
    """Print a table: held-out R2 and RMSE, mean ± standard deviation over seeds, of the model and of baselines.

    splits: what was held out -> (seed -> train, held out)
    """
    methods = {"CPCompletion": lambda train, test, seed: model.set_params(random_state=seed).fit(train).predict(test),
               "TensorLy `parafac`": lambda train, test, seed: _tensorly(parafac, "svd", model.rank, train, test, seed)}
    if model.non_negative:
        methods["TensorLy `non_negative_parafac`"] = \
            lambda train, test, seed: _tensorly(non_negative_parafac, "random", model.rank, train, test, seed)
    methods["additive"] = _additive
    print("| held out | method | R² | RMSE |\n|---|---|---|---|")
    for what, split in splits.items():
        parts = [split(seed) for seed in range(seeds)]
        for name, method in methods.items():
            errors = [test.value - method(train, test, seed) for seed, (train, test) in enumerate(parts)]
            rmse = [np.sqrt(np.mean(e**2)) for e in errors]
            r2 = [1 - np.mean(e**2) / test.value.var() for e, (_, test) in zip(errors, parts, strict=True)]
            print(f"| {what} | {name} | {_spread(r2)} | {_spread(rmse)} |")


def _spread(x: list[float]) -> str:
    return f"{np.mean(x):.3g} ± {np.std(x, ddof=1):.2g}"


def _tensorly(method: Callable, init: str, rank: int, train: Observed, test: Observed, seed: int) -> np.ndarray:
    """TensorLy's CP with a mask, at its own tolerance; 300 rounds, three times its default.

    Each method gets the better of its two starts, as these data tell: `parafac` from "random" misses lost ends of kinetics
    (R2 below 0), `non_negative_parafac` from "svd", its default, diverges there (TensorLy 0.10).
    """
    cp = method(train.dense(fill=0.0), rank, mask=train.mask(), init=init, random_state=seed, n_iter_max=300)
    return cp_to_tensor(cp)[tuple(test.index.T)]


def _additive(train: Observed, test: Observed, seed: int) -> np.ndarray:
    """A mean, plus a number for each row of each mode: least squares."""
    def design(part: Observed) -> csr_array:
        columns = part.index + np.cumsum((0, *part.shape[:-1]))
        rows = np.repeat(np.arange(len(part)), len(part.shape))
        return csr_array((np.ones(columns.size), (rows, columns.ravel())), shape=(len(part), sum(part.shape)))
    mean = train.value.mean()
    return mean + design(test) @ lsqr(design(train), train.value - mean)[0]


if __name__ == "__main__":
    import os

    import matplotlib as mpl

    mpl.use("Agg")
    os.chdir(TEXT.parent)   # the pictures go beside the text
    sys.path.insert(0, str(TEXT.parent))
    TEXT.write_text(run(TEXT.read_text()))
