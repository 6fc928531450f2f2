"""What is in a data set, in plain lines, beside the paper's Table 5 where that has the same environment and data set."""

import csv
from functools import cache
from importlib.resources import files

import numpy as np

from lowrank_rl.rl.contracts import Environment
from lowrank_rl.rl.data import Episodes

NOTES = {"cartpole": "the paper's stored rewards omit one step of each episode (its length - return is 1.00 in all data sets); "
                     "ours count it"}


@cache
def paper_numbers() -> dict[tuple[str, str], np.ndarray]:
    """Table 5 by (environment, data set): the five test agents' returns, the average return, the average length, (7,).

    The table prints "Pure-eps-2" and "Pure-eps-4" for what the other tables call pure-eps-20 and pure-eps-40.
    """
    with files("lowrank_rl.rl").joinpath("paper_table5.csv").open() as file:
        return {(environment, dataset): np.array(numbers, dtype=np.float64)
                for environment, dataset, *numbers in list(csv.reader(file))[1:]}


def card(episodes: Episodes, environment: Environment) -> str:
    """Agents, steps, lengths, returns and ranges of a data set; ``episodes.policy`` is its name."""
    lengths, returns = episodes.lengths, episodes.returns
    lines = [
        f"data set      {episodes.environment} / {episodes.policy}, seed {episodes.seed}",
        f"agents        {len(set(episodes.agent.tolist()))}, episodes {len(episodes)}, transitions {len(episodes.state)}",
        f"length        mean {lengths.mean():.1f}, from {lengths.min()} to {lengths.max()} steps; "
        f"{episodes.terminated.mean():.1%} reached an end",
        f"return        mean {returns.mean():.2f}, sd {returns.std():.2f}, from {returns.min():.4g} to {returns.max():.4g}",
        *_returns_of_test_agents(episodes, environment),
    ]
    columns = [*zip(environment.state_names, episodes.state.T, strict=True),
               *((f"action {i}", action) for i, action in enumerate(episodes.action.T)),
               *zip(environment.covariate_names, episodes.covariates.T, strict=False)]    # logs may come without
    width = max(len(name) for name, _ in columns)
    lines += [f"  {name:<{width}}  {x.min():>10.4g} .. {x.max():<10.4g} mean {x.mean():>10.4g}  sd {x.std():.4g}"
              for name, x in columns]
    return "\n".join(lines)


def _returns_of_test_agents(episodes: Episodes, environment: Environment) -> list[str]:
    """A small table: ours, and the paper's if it has one. A test agent without an episode shows a dash."""
    tests = range(len(environment.test_agents))
    means = [episodes.returns[episodes.agent == n].mean() if (episodes.agent == n).any() else np.nan for n in tests]
    rows = {"ours": [*means, episodes.returns.mean(), episodes.lengths.mean()]}
    paper = paper_numbers().get((episodes.environment, episodes.policy))
    if paper is not None:
        rows["paper, Table 5"] = paper
    heads = [*(f"agent {n + 1}" for n in tests), "average", "length"]
    lines = [f"{'test agents':<16}" + "".join(f"{head:>9}" for head in heads)]
    lines += [f"  {who:<14}" + "".join("        -" if np.isnan(x) else f"{x:>9.2f}" for x in numbers)
              for who, numbers in rows.items()]
    if paper is not None and episodes.environment in NOTES:
        lines.append(f"  note: {NOTES[episodes.environment]}")
    return lines
