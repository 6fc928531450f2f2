"""What stands behind the numbers of a report, in sentences."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.gather import Gathered
from lowrank_rl.rl.bench.store import Record
from lowrank_rl.rl.bench.tables import of
from lowrank_rl.rl.contracts import Environment

NAMED = 12     # cells or failures that a note names one by one


@dataclass(frozen=True)
class Note:
    text: str
    lead: str = ""     # first words, to be set off
    alarm: bool = False     # to be read before any number


def notes(environment: Environment, gathered: Gathered) -> list[Note]:
    """Repeats, episodes, cut episodes, commit, versions, what is older or was left out, what failed, what has not run."""
    failed = gathered.failures
    lines = _behind(environment, gathered) if gathered.records else []
    older = [f"{group.method} on {group.dataset}" for group in gathered.groups if group.older]
    if older:
        lines.append(Note(f"{', '.join(older)}; a command that names these methods and data sets runs them anew.",
                          "Made with other settings or code than today's:"))
    lines += [Note(sentence, "Left out:") for sentence in gathered.left_out]
    lines += [Note(f"FAILED {record.cell}: {last_line(record)}") for record in failed[:NAMED]]
    if len(failed) > NAMED:
        lines.append(Note(f"FAILED: {of(len(failed) - NAMED, 'more cell')}; records.jsonl has their messages."))
    if gathered.missing:
        lines.append(Note(f"Not run yet: {gathered.missing} of {gathered.asked} cells; the same command goes on with them."))
    return lines


def _behind(environment: Environment, gathered: Gathered) -> list[Note]:
    have, most = gathered.records, environment.max_steps
    budget = have[0].config["budget"]
    members = sorted({r.config["learning"]["members"] for r in have if "members" in r.config.get("learning", {})})
    flown = " or ".join(str(x) for x in sorted({r.config["budget"]["return_episodes"] for r in have}, reverse=True))
    ensembles = f"{' or '.join(map(str, members))} member(s), " if members else ""
    lines = [Note(f"Budget {gathered.budget}, settings {gathered.settings}: {_seeds(have)}, {_agents(have)}, "
                  f"{ensembles}{flown} episodes per agent and seed for returns, {budget['error_episodes']} "
                  "for errors. ± is the standard deviation (n - 1) over seeds, as the paper's over 5 repeats; over episodes "
                  "where there is one seed or nothing to train, as the paper's for True env+MPC must be. [95 % interval] of a "
                  "mean: Student's, of what its ± is over. n: seeds × episodes each, or seeds.")]
    lines += _efforts(gathered)
    lines += _newcomers(gathered)
    always = [record for record in have if record.same_action == 1]
    if always:
        lines.append(Note(f"{_named(always)}.", "Always the same action:"))
    if gathered.cut:
        lines.append(Note("Use a larger --budget for that.", f"Our returns here are of the first {gathered.cut} of {most} "
                          "steps; the paper's are of whole episodes, so the two do not compare.", True))
    if any(record.rmse is not None for record in have):
        lines.append(Note("Prediction errors are on trajectories of our trained test policy; the paper's was another, so "
                          "compare with care."))
    dropped = sum(r.non_finite for r in have)
    if dropped:
        lines.append(Note(f"{dropped} candidate plans scored NaN or Inf and were passed over."))
    lines.append(Note(f"Commit {', '.join(commits(have))}; {', '.join(versions(have))}; {', '.join(devices(have))}."))
    return lines


def commits(records: Sequence[Record]) -> list[str]:
    return sorted({record.commit or "no commit" for record in records})


def versions(records: Sequence[Record]) -> list[str]:
    """A package that differs between the records is told with each of its versions."""
    found: dict[str, dict[str, None]] = {}
    for told in dict.fromkeys(tuple(record.versions.items()) for record in records):
        for name, version in told:
            found.setdefault(name, {})[version] = None
    return [f"{name} {' or '.join(those)}" for name, those in found.items()]


def devices(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.device or "unknown machine" for record in records))


def last_line(record: Record) -> str:
    lines = record.message.strip().splitlines()
    return lines[-1] if lines else "no message"


def _efforts(gathered: Gathered) -> list[Note]:
    """How many updates stand behind each baseline, where there are any."""
    found: dict[str, set[int]] = {}
    for group in gathered.groups:
        if cases.METHODS[group.method].baseline:
            for record in group.records:
                learning = record.config.get("learning", {})
                of = learning.get("policy") or learning.get("descent") or learning
                found.setdefault(group.method, set()).add(of.get("updates") or of.get("steps") or 0)
    if not found:
        return []
    told = ", ".join(f"{method} {' or '.join(map(str, sorted(counts)))}" for method, counts in found.items())
    known = "; the paper's BCQ had 550000" if any("bcq" in method for method in found) else ""
    return [Note(f"Updates of baselines (MOReL: steps of PPO): {told}{known}.")]


def _newcomers(gathered: Gathered) -> list[Note]:
    """How PerSim got the rows of unseen agents."""
    found = [record for record in gathered.records if cases.METHODS[record.cell.method].unseen]
    if not found:
        return []
    by = "a network, as in the paper" if gathered.settings == "paper" else "fractional polynomials"
    lines = [Note("No data come from them. PerSim's simulators are the test agents'; rows are found from covariates, known of "
                  f"so many percent of the training agents (-p10), by {by}; from an agent's own first steps (-k10); or from "
                  "both.",
                  "Unseen agents:")]
    few = [record for record in found if "shown" in record.training
           and record.training["shown"] < cases.METHODS[record.cell.method].unseen.steps]
    if few:
        lines.append(Note(f"{_named(few)}.", "The episode ended before it had shown so many steps:"))
    return lines


def _named(records: Sequence[Record]) -> str:
    """Cells by name, or how many of each method and data set where they are many."""
    if len(records) <= NAMED:
        return ", ".join(str(record.cell) for record in records)
    counts = Counter(f"{record.cell.method} on {record.cell.dataset}" for record in records)
    return ", ".join(f"{of(count, 'cell')} of {where}" for where, count in counts.items())


def _agents(records: Sequence[Record]) -> str:
    """How many were logged, by data set where they differ."""
    found = {record.cell.dataset: record.config["budget"]["agents"] for record in records if record.cell.dataset != "none"}
    if len(set(found.values())) > 1:
        return ", ".join(f"{count} agents of {dataset}" for dataset, count in found.items())
    return f"{next(iter(found.values()), records[0].config['budget']['agents'])} agents"


def _seeds(records: Sequence[Record]) -> str:
    """How many there are, by data set where they differ; each number's own n says how many are behind it."""
    found: dict[tuple[str, str], set[int]] = {}
    for record in records:
        found.setdefault((record.cell.dataset, record.cell.method), set()).add(record.cell.seed)
    trained = {where: len(seeds) for where, seeds in found.items() if where[0] != "none"}
    if not trained:
        return f"{len(set().union(*found.values()))} seed(s)"
    by_data = {dataset: {count for where, count in trained.items() if where[0] == dataset} for dataset, _ in trained}
    counts = set(trained.values())
    if len(counts) > 1 and all(len(those) == 1 for those in by_data.values()):
        return ", ".join(f"{those.pop()} seed(s) of {dataset}" for dataset, those in by_data.items())
    return f"{min(counts)} to {max(counts)} seeds, as n says" if len(counts) > 1 else f"{counts.pop()} seed(s)"
