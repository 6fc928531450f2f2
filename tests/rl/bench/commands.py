"""Words of the benchmark's command at its smallest, and what it leaves."""

from lowrank_rl.rl.bench import __main__ as bench


def command(environment, out, *more, datasets=("random",)):
    return ["--env", environment, "--budget", "tiny", "--jobs", "1", "--out", str(out), "--datasets", *datasets, *more]


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def refused(capsys, words):
    """The one sentence on stderr of a command that ends with 2."""
    assert bench.main(words) == 2
    caught = capsys.readouterr()
    assert caught.err.count("\n") == 1
    assert caught.err.startswith("error: ")
    return caught.err
