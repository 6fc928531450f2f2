"""Pictures from real, tiny results: each is drawn, shows what it says, and a missing piece costs only its own picture."""

import errno
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.rl.bench import cases, pieces, run, train
from lowrank_rl.rl.bench.store import Cell, Record

image = pytest.importorskip("matplotlib.image")
plots = pytest.importorskip("lowrank_rl.rl.bench.plots")

CAR = cases.ENVIRONMENTS["mountaincar"]
CELLS = [Cell("mountaincar", "random" if cases.METHODS[method].learns else "none", method, agent, 0, "best", "tiny")
         for method in ("persim", "pooled", "uniform") for agent in (1, 4)]
STEM = "mountaincar-random-tiny-best"


def quiet(words, share):
    pass


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the workers make, made here: (folder, records)."""
    out = tmp_path_factory.mktemp("plots")
    records = {}
    for cell in CELLS:
        if cell.dataset != "none":
            train.make_data(out, cell, quiet)
            train.train(out, cell, "cpu", quiet)
        records[cell] = run.run_cell(out, cell, "cpu", quiet)
    return out, records


@pytest.fixture
def figures(monkeypatch):
    """Figures by name, as they go to the disk."""
    seen, save = {}, plots._save

    def spy(figure, path):
        seen[path.stem.rpartition("-")[2]] = figure
        return save(figure, path)
    monkeypatch.setattr(plots, "_save", spy)
    return seen


def names(paths):
    return [path.name.removeprefix(STEM + "-") for path in paths]


def test_all_four(results, figures):
    out, records = results
    paths = plots.draw_all(out, CAR, CELLS, records)
    assert names(paths) == ["trajectories.png", "error.png", "latent.png", "returns.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200
        assert 0.01 < np.mean(pixels[..., :3].min(-1) < 0.9) < 0.9      # some ink, not all ink
    assert not plots.plt.get_fignums()                                  # none left open


def test_trajectories_show_the_truth_and_every_method(results, figures):
    out, _ = results
    plots.trajectories(out, CAR, CELLS[:4])
    axes = np.array(figures["trajectories"].axes).reshape(len(CAR.state_names), 2)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == list(CAR.state_names)
    assert [axis.get_title() for axis in axes[0]] == ["agent 1\ngravity 0.0001", "agent 4\ngravity 0.0025"]
    for axis in axes.flat:
        assert [line.get_label() for line in axis.lines] == ["true", "persim", "pooled"]
    with np.load(pieces.trace_path(out, CELLS[1])) as trace:
        true, predicted = trace["true"], trace["predicted"]
    persim = axes[1, 1].lines[1].get_ydata()
    np.testing.assert_array_equal(axes[1, 1].lines[0].get_ydata(), true[:, 1])
    np.testing.assert_allclose(persim, predicted[:, :len(persim), 1].mean(0))


def test_the_truth_is_there_for_an_agent_whose_first_method_failed(results, figures):
    out, records = results
    records = {**records, CELLS[1]: Record(CELLS[1], "failed", message="no")}
    plots.draw_all(out, CAR, CELLS, records)
    assert [line.get_label() for line in figures["trajectories"].axes[1].lines] == ["true", "pooled"]


def test_error_curves_are_the_mean_over_seeds(results, figures):
    out, records = results
    again = replace(CELLS[0], seed=1)
    doubled = [None if x is None else 3 * x for x in records[CELLS[0]].error_by_step]
    records = {**records, again: replace(records[CELLS[0]], cell=again, error_by_step=doubled)}
    plots.error_over_horizon(out, CAR, [*CELLS, again], records)
    drawn = figures["error"].axes[0].lines[0].get_ydata()
    expected = [np.nan if x is None else 2 * x for x in records[CELLS[0]].error_by_step]
    np.testing.assert_allclose(drawn, expected)


def test_a_true_environment_far_above_does_not_hide_what_was_learned(results, figures):
    out, records = results
    others = {cell: replace(record, returns=[1e6 if cell.method == "uniform" else 10.0]) for cell, record in records.items()}
    plots.returns(out, CAR, CELLS, others)
    axis = figures["returns"].axes[0]
    assert axis.get_ylim() == (-0.5, 14)
    assert "1,000,000" in {text.get_text() for text in axis.texts}
    whole = {cell: replace(record, config={"budget": {**record.config["budget"], "return_steps": None}})
             for cell, record in others.items()}
    plots.returns(out, CAR, CELLS, whole)
    axis = figures["returns"].axes[0]
    assert axis.get_ylim()[0] < -186.6 < -186 < axis.get_ylim()[1]          # the paper's, far below, stays in the picture


def test_returns_of_cut_episodes_stand_without_the_papers(results, figures):
    out, records = results
    plots.returns(out, CAR, CELLS, records)
    axis = figures["returns"].axes[0]
    assert axis.get_ylabel() == "return of the first 12 steps"
    legend = figures["returns"].legends[0]
    assert {text.get_text() for text in legend.get_texts()} == {"persim", "pooled", "uniform"}
    whole = {cell: replace(r, config={"budget": {**r.config["budget"], "return_steps": None}}) for cell, r in records.items()}
    plots.returns(out, CAR, CELLS, whole)
    axis = figures["returns"].axes[0]
    assert axis.get_ylabel() == "return"
    black = [line.get_ydata()[0] for line in axis.lines if line.get_color() == "black" and len(line.get_ydata()) == 2]
    assert {-57.7, -186.6} <= set(black)                                # Table 9, PerSim, random, agents 1 and 4
    bars = [bar.get_height() for bar in axis.patches]
    assert bars == [np.mean(records[cell].returns) for cell in CELLS]


def test_latent_rows_are_coloured_by_what_was_hidden(results, figures):
    out, _ = results
    plots.latent_rows(out, CAR, CELLS[0])
    flat, neighbours, bar = figures["latent"].axes
    assert (flat.get_title(), neighbours.get_title(), bar.get_ylabel()) == ("PCA", "t-SNE", "gravity")
    dots = flat.collections[0]
    assert dots.get_offsets().shape == (8, 2)                           # all agents of the data set
    np.testing.assert_array_equal(dots.get_array()[:5], [a[0] for a in CAR.test_agents])
    assert [text.get_text() for text in flat.texts] == list("12345")


def test_records_of_other_settings_are_in_no_picture(results, tmp_path, figures):
    """As in the tables: an older seed would else be a dot among today's."""
    _, records = results
    old = replace(CELLS[0], seed=1)
    other = replace(records[CELLS[0]], cell=old, returns=[-9999.0], config={**records[CELLS[0]].config, "learning": {}})
    plots.draw_all(tmp_path, CAR, [*CELLS, old], {**records, old: other})
    assert min(bar.get_height() for bar in figures["returns"].axes[0].patches) > -1000


def test_rank_one_still_has_a_picture(results, tmp_path, monkeypatch):
    config = cases.LEARNING["best", "mountaincar"]
    monkeypatch.setitem(cases.LEARNING, ("best", "mountaincar"), replace(config, rank=1))
    train.make_data(tmp_path, CELLS[0], quiet)
    train.train(tmp_path, CELLS[0], "cpu", quiet)
    assert plots.latent_rows(tmp_path, CAR, CELLS[0]).stat().st_size > 10_000


def test_scarcity_stands_beside_the_papers(results, tmp_path, figures):
    _, records = results
    made = {}
    for number, dataset in enumerate(("random", "random-of-250", "random-of-25")):
        for seed in range(2):
            cell = replace(CELLS[1], dataset=dataset, budget="small", seed=seed)
            budget = {**records[CELLS[1]].config["budget"], "return_steps": None}
            made[cell] = replace(records[CELLS[1]], cell=cell, returns=[-100.0 - 10 * number - seed],
                                 config={**pieces.settings_of(cell), "budget": budget})
    path = plots.scarcity(tmp_path, CAR, list(made), made)
    assert path.name == "mountaincar-random-small-best-scarcity.png"
    axis = figures["scarcity"].axes[0]
    ours, theirs = axis.containers[0][0], axis.lines[-1]
    assert ours.get_xdata().tolist() == theirs.get_xdata().tolist() == [25, 250, 500]
    assert ours.get_ydata().tolist() == [-120.5, -110.5, -100.5]
    assert theirs.get_ydata().tolist() == [-246.8, -192.3, -186.6]      # Tables 14 and 9


def test_unseen_agents_are_in_a_picture_of_their_own(results, tmp_path, figures):
    _, records = results
    known = records[CELLS[0]]
    made, errors = {}, {"persim-k5": (0.1, 0.3), "persim-k25": (0.02, 0.04), "persim-p10": (0.05, 0.07),
                        "persim-p10-k10": (0.01, 0.03)}
    for agent in (6, 9):
        for method, those in errors.items():
            for seed, error in enumerate(those):
                cell = replace(CELLS[0], method=method, agent=agent, seed=seed)
                made[cell] = replace(known, cell=cell, rmse=error * agent, config=pieces.settings_of(cell))
    cells = [*CELLS, *made]
    paths = plots.draw_all(tmp_path, CAR, cells, {**records, **made})
    assert names(paths) == ["error.png", "returns.png", "adaptation.png"]
    assert [len(figures[name].axes) for name in ("error", "adaptation")] == [2, 2]
    assert len(figures["returns"].axes[0].get_xticklabels()) == 2
    axis = figures["adaptation"].axes[1]
    assert axis.get_title() == "agent 9\ngravity 0.0037"
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axis.lines}
    assert lines["own steps"].get_xdata().tolist() == [5, 25]
    np.testing.assert_allclose(lines["own steps"].get_ydata(), [0.2 * 9, 0.03 * 9])
    assert lines["own steps and covariates"].get_xdata().tolist() == [10]
    np.testing.assert_allclose(lines["persim-p10"].get_ydata(), [0.06 * 9] * 2)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["5", "10", "25"]
    known_only = [cell for cell in made if cell.method == "persim-p10"]
    assert plots.draw_all(tmp_path, CAR, known_only, made) == []


def test_nothing_done_draws_nothing(tmp_path):
    assert plots.draw_all(tmp_path, CAR, CELLS, {}) == []
    assert plots.draw_all(tmp_path, CAR, CELLS, {cell: Record(cell, "failed", message="no") for cell in CELLS}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("lost", "left"), [
    ("traces", ["error.png", "latent.png", "returns.png"]), ("models", ["trajectories.png", "error.png", "returns.png"]),
    ("data", ["trajectories.png", "error.png", "returns.png"])])
def test_a_lost_folder_costs_only_its_pictures(results, tmp_path, lost, left):
    """As when only the records were kept, or when new settings name another model."""
    out, records = results
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / lost)
    assert names(plots.draw_all(tmp_path / "out", CAR, CELLS, records)) == left


@pytest.mark.parametrize(("corrupt", "left"), [("traces", ["error.png", "latent.png", "returns.png"]),
                                               ("models", ["trajectories.png", "error.png", "returns.png"])])
def test_a_corrupt_file_costs_only_its_picture(results, tmp_path, capsys, corrupt, left):
    out, records = results
    shutil.copytree(out, tmp_path / "out")
    for path in (tmp_path / "out" / corrupt).iterdir():
        path.write_bytes(b"no such file")
    assert names(plots.draw_all(tmp_path / "out", CAR, CELLS, records)) == left
    assert "a picture is left out: " in capsys.readouterr().out


def test_a_picture_on_a_full_disk_leaves_the_older_one(results, tmp_path, monkeypatch):
    out, records = results
    shutil.copytree(out, tmp_path / "out")
    older = tmp_path / "out" / f"{STEM}-returns.png"
    older.write_bytes(b"older")
    open_before = plots.plt.get_fignums()
    really = plots.plt.Figure.savefig

    def full(figure, path, **options):
        really(figure, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(plots.plt.Figure, "savefig", full)
    with pytest.raises(ValueError, match=r"returns\.png: expected a place that can be written, got '.*No space left"):
        plots.returns(tmp_path / "out", CAR, CELLS, records)
    assert older.read_bytes() == b"older"
    assert not list((tmp_path / "out").glob(".*.png"))
    assert plots.plt.get_fignums() == open_before


def test_a_trace_of_odd_shapes_costs_only_its_picture(results, tmp_path, capsys):
    out, records = results
    shutil.copytree(out, tmp_path / "out")
    for path in (tmp_path / "out" / "traces").iterdir():
        np.savez(path, true=np.zeros((3, 9)), predicted=np.zeros(2))
    assert "trajectories.png" not in names(plots.draw_all(tmp_path / "out", CAR, CELLS, records))
    assert "a picture is left out: " in capsys.readouterr().out


@pytest.mark.parametrize("agents", [(1,), (1, 4)])
def test_words_lie_inside_the_picture(results, figures, agents):
    """With many methods and few agents, too; such pictures once cut their titles and legends."""
    out, records = results
    mine = [cell for cell in CELLS if cell.agent in agents]
    names = [name for name, method in cases.METHODS.items() if method.learns and not method.unseen]
    many = {replace(cell, method=name): replace(record, cell=replace(cell, method=name)) for cell, record in records.items()
            if cell in mine and cell.method == "persim" for name in names}
    plots.trajectories(out, CAR, [cell for cell in mine if cell.dataset != "none"])
    plots.error_over_horizon(out, CAR, list(many), many)
    plots.returns(out, CAR, list(many), many)
    plots.scarcity(out, CAR, list(many), many)
    assert set(figures) == {"trajectories", "error", "returns", "scarcity"}
    for name, figure in figures.items():
        words = [*figure.legends, *figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
        assert len(words) > 2
        for one in words:
            box = one.get_window_extent()
            assert box.x0 >= 0, (name, one)
            assert box.x1 <= figure.bbox.x1, (name, one)
