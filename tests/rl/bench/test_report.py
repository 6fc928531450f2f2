"""Tables from hand-made records, cell by cell, and the paper's numbers as typed from its tables."""

import csv
from dataclasses import replace
from importlib.resources import files

import pytest

from lowrank_rl.rl.bench import cases, published, report
from lowrank_rl.rl.bench.gather import by_kind_of_agent, gather
from lowrank_rl.rl.bench.store import Cell, Record, Store
from lowrank_rl.rl.bench.tables import number

CAR = cases.ENVIRONMENTS["mountaincar"]
CONFIG = {"budget": {"agents": 500, "members": 9, "return_episodes": 3, "error_episodes": 50, "return_steps": None},
          "learning": {"members": 5}}


def cell(method="persim", agent=1, seed=0, *, dataset=None, environment="mountaincar", budget="quick", settings="best"):
    dataset = dataset or ("random" if method in ("persim", "pooled") else "none")
    return Cell(environment, dataset, method, agent, seed, settings, budget)


def done(where, returns, **more):
    return Record(where, "done", returns=returns, config=CONFIG, commit="abc", versions={"torch": "2"}, device="cpu", **more)


def rows(text, title):
    """The cells of one table, (method, data, source) -> texts; the head under "head"."""
    lines = text.split(f"### {title}")[1].split("###")[0].splitlines()
    table = [[x.strip() for x in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({len(row) for row in table}) == 1      # a Markdown reader would drop columns
    assert set("".join(table[1])) == {"-"}
    return {"head": table[0][3:], **{tuple(row[:3]): row[3:] for row in table[2:]}}


def all_tables(*what):
    return report.tables_text(report.build(*what))


def footnotes(*what):
    return report.notes_text(report.build(*what))


def tables(cells, records, environment=CAR):
    return all_tables(environment, cells, {r.cell: r for r in records})


def test_one_seed_gives_the_spread_over_episodes():
    mine = [cell(agent=1), cell(agent=3)]
    text = tables(mine, [done(mine[0], [-50.0, -60.0, -70.0], rmse=0.0123, r2=0.5), done(mine[1], [-100.0], rmse=2.0, r2=-3.0)])
    table = rows(text, "Average return")
    assert table["head"] == ["agent 1: 0.0001", "agent 3: 0.001"]
    assert table["persim", "random", "ours"] == ["-60 ± 10", "-100"]
    assert table["persim", "random", "paper"] == ["-57.7 ± 5.6", "-120.4 ± 2.2"]       # Table 9
    errors = rows(text, "50-step prediction error, RMSE")
    assert errors["persim", "random", "ours"] == ["0.012", "2"]
    assert errors["persim", "random", "paper"] == ["0.004", "0.001"]                   # Table 6
    assert rows(text, "50-step prediction error, median R2")["persim", "random", "ours"] == ["0.500", "-3"]


def test_a_method_that_has_not_run_on_every_agent_leaves_gaps():
    mine = [cell(agent=1), cell(agent=2), cell("pooled", agent=1)]
    table = rows(tables(mine, [done(c, [-50.0]) for c in mine]), "Average return")
    assert table["pooled", "random", "ours"] == ["-50", "missing"]
    assert table["persim", "random", "paper"] == ["-57.7 ± 5.6", "-74.3 ± 6.4"]       # Table 9


def test_several_seeds_give_the_spread_over_seeds():
    mine = [cell(seed=s) for s in range(3)]
    records = [done(c, [x - 5, x + 5], rmse=e, r2=1.0)
               for c, x, e in zip(mine, (-50.0, -52.0, -54.0), (0.1, 0.2, 0.3), strict=True)]
    text = tables(mine, records)
    assert rows(text, "Average return")["persim", "random", "ours"] == ["-52 ± 2"]
    assert rows(text, "50-step prediction error, RMSE")["persim", "random", "ours"] == ["0.200 ± 0.1"]
    text = tables(mine, records[:2])
    assert rows(text, "Average return")["persim", "random", "ours"] == ["-51 ± 1.4 (2 of 3 seeds)"]


def test_where_nothing_is_trained_seeds_are_more_episodes():
    """The paper's True env+MPC: CartPole's 198.4 ± 7.2 of Table 10 cannot be over five means of at most 200."""
    mine = [cell("true-env-mpc", seed=s) for s in range(2)]
    text = tables(mine, [done(mine[0], [-50.0, -60.0]), done(mine[1], [-70.0, -80.0])])
    assert rows(text, "Average return")["true-env-mpc", "none", "ours"] == ["-65 ± 13"]


def test_errors_stand_in_ratio_to_the_papers():
    mine = [cell(agent=a) for a in (1, 2, 3)]
    text = tables(mine, [done(c, [-50.0], rmse=e, r2=0.9) for c, e in zip(mine[:2], (0.002, 0.006), strict=True)])
    assert rows(text, "50-step prediction error, RMSE")["persim", "random", "ours/paper"] == ["0.50", "2.00", "-"]
    pooled = [cell("pooled")]
    assert "ours/paper" not in tables(pooled, [done(pooled[0], [-50.0], rmse=0.1, r2=0.9)])
    pole = cell(environment="cartpole", dataset="pure-eps-20")     # Table 7 prints 0.000
    table = rows(tables([pole], [done(pole, [190.0], rmse=0.1, r2=0.9)], cases.ENVIRONMENTS["cartpole"]), "50-step")
    assert table["persim", "pure-eps-20", "ours/paper"] == ["-"]


def middles(text):
    return rows(text, "Interquartile mean of the returns")


def test_interquartile_means_and_scores():
    """Scores by hand, from CartPole's 37.65 of random actions and 200 at most."""
    pole = cases.ENVIRONMENTS["cartpole"]
    mine = [cell(agent=1, seed=s, environment="cartpole") for s in range(2)]
    table = middles(tables(mine, [done(mine[0], [100.0, 120.0]), done(mine[1], [140.0, 200.0])], pole))
    assert table["head"] == ["agent 1: 2, 0.5", "together"]
    assert table["persim", "random", "IQM"] == ["130", ""]
    assert table["persim", "random", "IQM, interval"][0].startswith("[1")
    assert table["persim", "random", "score"] == ["63.0", "56.9"]       # (140 - 37.65) / (200 - 37.65), (130 - 37.65) / ...
    assert table["persim", "random", "paper's score"] == ["98.6", ""]   # 197.7 in Table 10


def test_one_episode_has_no_interval_and_missing_cells_no_score_together():
    mine = [cell(agent=a) for a in (1, 4)]
    table = middles(tables(mine, [done(mine[1], [-500.0])]))
    assert table["persim", "random", "IQM"] == ["", "-500", ""]
    assert table["persim", "random", "score"] == ["", "0.0", ""]


def test_no_score_without_a_best_return_or_of_cut_episodes():
    cheetah = cell(environment="halfcheetah")
    table = middles(tables([cheetah], [done(cheetah, [1000.0])], cases.ENVIRONMENTS["halfcheetah"]))
    assert table["head"] == ["agent 1: 0.3, 1.7"]
    assert set(table) == {"head", ("persim", "random", "IQM")}
    cut = {"budget": {**CONFIG["budget"], "return_steps": 30}}
    text = tables([cell()], [replace(done(cell(), [-30.0]), config=cut)])
    assert middles(text)["head"] == ["agent 1: 0.0001"]
    assert "core" not in text


def test_the_order_of_records_and_of_seeds_does_not_matter():
    mine = [cell(agent=a, seed=s) for a in (1, 2) for s in range(3)]
    records = [done(c, [-50.0 - 3 * i, -60.0 + i]) for i, c in enumerate(mine)]
    assert tables(mine, records) == tables(mine[::-1], records[::-1])

def test_missing_and_failed_cells_say_so():
    mine = [cell(agent=a, seed=s) for a in (1, 2, 3) for s in (0, 1)]
    records = [done(mine[0], [-50.0], rmse=0.1, r2=0.9), Record(mine[1], "failed", message="Traceback\n  line\nMemoryError: 3"),
               done(mine[2], [-50.0], rmse=0.1, r2=0.9)]
    table = rows(tables(mine, records), "Average return")
    assert table["persim", "random", "ours"] == ["-50 (1 of 2 seeds, 1 FAILED)", "-50 (1 of 2 seeds)", "missing"]
    assert rows(tables(mine[1:2], records), "Average return")["persim", "random", "ours"] == ["FAILED"]
    notes = footnotes(CAR, mine, {r.cell: r for r in records})
    assert "FAILED mountaincar/random/persim/agent 1/seed 1: MemoryError: 3" in notes
    assert "Not run yet: 3 of 6 cells; the same command goes on with them." in notes


def test_nothing_done_yet_still_reports():
    mine = [cell(agent=1), cell("uniform", 1)]
    text = tables(mine, [])
    assert rows(text, "Average return")["persim", "random", "ours"] == ["missing"]
    assert "Not run yet: 2 of 2 cells" in footnotes(CAR, mine, {})
    assert tables([], []) == ""


def test_methods_without_a_simulator_stay_out_of_the_error_tables():
    mine = [cell("persim"), cell("uniform"), cell("true-env-mpc")]
    text = tables(mine, [done(mine[0], [-1.0], rmse=0.1, r2=0.9), done(mine[1], [-500.0]), done(mine[2], [-54.0, -56.0])])
    returns = rows(text, "Average return")
    assert returns["true-env-mpc", "none", "ours"] == ["-55 ± 1.4"]
    assert returns["true-env-mpc", "none", "paper"] == ["-53.95 ± 4.1"]                # Table 9
    assert ("uniform", "none", "paper") not in returns
    assert {key[0] for key in rows(text, "50-step prediction error, RMSE") if key != "head"} == {"persim"}


def test_a_dash_where_the_paper_has_no_number(monkeypatch):
    known = {k: v for k, v in published.paper_numbers().items() if k[4] != "2"}
    monkeypatch.setattr(published, "paper_numbers", lambda: known)
    mine = [cell(agent=1), cell(agent=2)]
    table = rows(tables(mine, [done(c, [-50.0]) for c in mine]), "Average return")
    assert table["persim", "random", "paper"] == ["-57.7 ± 5.6", "-"]


def test_doubtful_numbers_of_the_paper_are_marked_and_explained():
    cheetah = cases.ENVIRONMENTS["halfcheetah"]
    mine = [cell("true-env-mpc", a, environment="halfcheetah") for a in (1, 2, 4)]
    text = tables(mine, [done(c, [1234.5, 1734.5]) for c in mine], cheetah)
    table = rows(text, "Average return")
    assert table["head"] == ["agent 1: 0.3, 1.7", "agent 2: 1.7, 0.3", "agent 4: 1.7, 1.7"]
    assert table["true-env-mpc", "none", "paper"] == ["7459 ± 171", "42893 ± 6959 *", "1746 ± 624"]      # Table 11
    assert table["true-env-mpc", "none", "ours"] == ["1484 ± 354"] * 3                  # no 1.5e+03 and no 3.5e+02
    assert "* suspect in the paper: unconfirmed: mean speed above 30 m/s" in text
    plain = [cell("persim", 1)]
    assert "suspect in" not in tables(plain, [done(plain[0], [-50.0])])


@pytest.mark.parametrize(("mean", "spread", "text"), [
    (0.0, None, "0"), (0.00123, None, "0.0012"), (0.0994, None, "0.099"), (0.0996, None, "0.100"),
    (0.5, 0.012, "0.500 ± 0.012"), (1.0, None, "1"), (-53.951, 4.1, "-53.95 ± 4.1"), (999.6, 99.4, "999.6 ± 99"),
    (1000.4, 99.6, "1000 ± 100"), (-66675.4, 9364.2, "-66675 ± 9364"), (float("nan"), None, "nan")])
def test_numbers_are_readable(mean, spread, text):
    assert number(mean, spread) == text


def test_a_table_never_mixes_budgets_or_settings(tmp_path):
    store, mine = Store(tmp_path), cell()
    for other in (replace(mine, budget="paper"), replace(mine, settings="paper"), replace(mine, dataset="pure")):
        store.append(done(other, [-400.0], rmse=9.0, r2=-9.0))
    text = all_tables(CAR, [mine], store.load())
    assert rows(text, "Average return")["persim", "random", "ours"] == ["missing"]
    store.append(done(mine, [-50.0], rmse=0.1, r2=0.9))
    text = all_tables(CAR, [mine], store.load())
    assert rows(text, "Average return")["persim", "random", "ours"] == ["-50"]
    assert "-400" not in text
    assert "Budget quick, settings best: 1 seed(s)" in footnotes(CAR, [mine], store.load())


def test_footnotes_tell_what_stands_behind_the_numbers():
    mine = [cell(seed=0), cell(seed=1)]
    records = {c: done(c, [-50.0], non_finite=2, rmse=0.1, r2=0.9) for c in mine}
    notes = footnotes(CAR, mine, records)
    assert "2 seed(s), 500 agents, 5 member(s), 3 episodes per agent and seed for returns, 50 for errors" in notes
    assert "4 candidate plans scored NaN or Inf" in notes
    other = cell(dataset="pure")
    assert "best: 2 seed(s) of random, 1 seed(s) of pure, 500 agents" in footnotes(
        CAR, [*mine, other], records | {other: done(other, [-50.0])})
    less = cell(method="bcq-p", dataset="random")
    assert "best: 1 to 2 seeds, as n says, 500 agents" in footnotes(
        CAR, [*mine, less], records | {less: done(less, [-50.0])})
    assert "trajectories of our trained test policy; the paper's was another" in notes
    assert "Commit abc; torch 2; cpu." in notes
    assert "of the first" not in notes
    cut = {"budget": {**CONFIG["budget"], "return_steps": 30}}
    notes = footnotes(CAR, mine, {c: replace(r, config=cut) for c, r in records.items()})
    assert "Our returns here are of the first 30 of 500 steps" in notes
    assert "do not compare" in notes


def new(method, agent, **changes):
    return cell(method, agent, **{"dataset": "random", **changes})


def test_unseen_agents_have_tables_of_their_own():
    """Table 12, random: p = .25 and .1 have .005 and .005 for gravity .00005; Table 13: -53.77 ± .33, BCQ-P -500."""
    tests = [done(cell(agent=a), [-50.0 - a, -51.0], rmse=0.002, r2=0.9) for a in (1, 3)]
    others = [done(new("persim-p25", a), [-44.0, -45.0], rmse=0.001 * a, r2=0.95) for a in (6, 7)]
    others += [done(new("bcq-p", 6), [-500.0, -500.0])]
    both = tables([r.cell for r in (*tests, *others)], [*tests, *others])
    alone = tables([r.cell for r in tests], tests)
    assert both.startswith(alone)                                        # test agents' tables are as without the others
    assert "agent 6" not in alone
    returns = rows(both, "Unseen agents: average return")
    assert returns["head"] == ["agent 6: 0.00005", "agent 7: 0.00008"]
    assert returns["persim-p25", "random", "ours"] == ["-44.5 ± 0.71"] * 2
    assert returns["persim-p25", "random", "paper"] == ["-53.77 ± 0.33", "-54.22 ± 0.88"]
    assert returns["bcq-p", "random", "ours"] == ["-500 ± 0", "missing"]
    assert returns["bcq-p", "random", "paper"] == ["-500 ± 0", "-500 ± 0"]
    errors = rows(both, "Unseen agents: 50-step prediction error, RMSE")
    assert errors["persim-p25", "random", "ours"] == ["0.006", "0.007"]
    assert errors["persim-p25", "random", "ours/paper"] == ["1.20", "1.75"]
    wins = rows_of_wins(both)
    assert wins["persim-p25", "return", "best persim"][:4] == ["2", "0", "0", "2"]      # of p = .1 (-53.25), of p = 1 (-53.97)
    assert wins["persim-p25", "RMSE", "best baseline"][:4] == ["2", "0", "0", "2"]      # .378, .351 of CaDM
    mine = {r.cell: r for r in (*tests, *others)}
    said = footnotes(CAR, mine, mine)
    assert said.count("Commit abc") == 1                                 # not said twice
    assert said.index("**Unseen agents:**") > said.index("Budget quick")
    only = tables([r.cell for r in others], others)
    assert only == both[len(alone) + 1:]


def rows_of_wins(text):
    lines = text.split("### Unseen agents: cells better")[1].split("###")[0].splitlines()
    table = [[x.strip() for x in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {tuple(row[:3]): row[3:] for row in table[2:]}


def test_an_episode_that_ended_early_is_told():
    one, two = (done(new(f"persim-k{count}", 6), [-44.0], training={"shown": shown}) for count, shown in ((25, 25), (100, 88)))
    notes = footnotes(CAR, [one.cell, two.cell], {r.cell: r for r in (one, two)})
    assert "The episode ended before it had shown so many steps:** mountaincar/random/persim-k100/agent 6/seed 0." in notes


def test_gather_keeps_kinds_of_agents_apart():
    both = [cell(agent=1), new("persim-k5", 6)]
    with pytest.raises(ValueError, match=r"expected those of test agents or of unseen ones, got both \(1 and 1\)"):
        gather(CAR, both, {})
    assert by_kind_of_agent(CAR, both[::-1]) == [[both[0]], [both[1]]]
    assert by_kind_of_agent(CAR, []) == [[]]
    with pytest.raises(ValueError, match="one budget and settings"):
        by_kind_of_agent(CAR, [both[0], replace(both[1], budget="paper")])


def test_pure():
    mine = [cell()]
    records = {mine[0]: done(mine[0], [-50.0, -51.0])}
    first = all_tables(CAR, iter(mine), records), footnotes(CAR, iter(mine), records)
    assert first == (all_tables(CAR, mine, records), footnotes(CAR, mine, records))


# Typed by hand from persim_paper.txt, tables 12 and 13.
@pytest.mark.parametrize(("method", "agent", "dataset", "metric", "number", "spread"), [
    ("persim-p100", 6, "random", "rmse", 0.004, None), ("persim-p50", 6, "pure", "rmse", 0.039, None),
    ("persim-p10", 10, "pure", "r2_median", 0.88, None), ("pe-ts-cadm", 7, "pure", "rmse", 0.450, None),
    ("persim-p10", 8, "random", "reward", -198.2, 1.38), ("persim-p25", 9, "pure", "reward", -199.7, 3.41),
    ("bcq-p", 10, "pure", "reward", -333.7, 139)])
def test_the_papers_numbers_of_unseen_agents(method, agent, dataset, metric, number, spread):
    assert published.paper(cell(method, agent, dataset=dataset), metric)[:2] == (number, spread)


def test_no_number_of_the_paper_is_of_the_wrong_agent():
    assert published.paper(new("persim-p10", 6), "reward")
    for where in (new("persim", 6), new("persim-p10", 1), new("persim-k5", 6), new("persim-p10-k10", 6), new("bcq-p", 8),
                  new("persim-p10", 6, dataset="pure-eps-20"), new("persim-p10", 6, environment="cartpole")):
        assert published.paper(where, "reward") is None
    assert published.table_of("mountaincar", "pure", "r2_median", unseen=True) == "12"
    assert published.table_of("mountaincar", "random", "reward", unseen=True) == "13"
    assert published.table_of("cartpole", "random", "reward", unseen=True) is None
    assert published.table_of("mountaincar", "pure-eps-40", "reward", unseen=True) is None
    assert published.published_methods("mountaincar", "random", "reward", unseen=True) == [
        "persim-p100", "persim-p50", "persim-p25", "persim-p10", "vanilla-cadm", "pe-ts-cadm", "bcq-p"]


# Typed by hand from persim_paper.txt (NeurIPS 2021, appendix F), tables 6-11.
@pytest.mark.parametrize(("environment", "method", "agent", "metric", "number", "spread"), [
    ("mountaincar", "persim", 1, "rmse", 0.004, None), ("mountaincar", "persim", 1, "r2_median", 0.999, None),   # Table 6
    ("mountaincar", "persim", 5, "rmse", 0.001, None), ("mountaincar", "persim", 5, "r2_median", 1.0, None),
    ("cartpole", "persim", 3, "rmse", 0.030, None), ("cartpole", "persim", 5, "rmse", 0.152, None),              # Table 7
    ("cartpole", "persim", 5, "r2_median", 0.883, None),
    ("halfcheetah", "persim", 2, "rmse", 4.064, None), ("halfcheetah", "persim", 5, "rmse", 2.325, None),        # Table 8
    ("halfcheetah", "persim", 4, "r2_median", 0.855, None),
    ("mountaincar", "persim", 1, "reward", -57.70, 5.63), ("mountaincar", "persim", 5, "reward", -210.1, 4.48),  # Table 9
    ("mountaincar", "true-env-mpc", 4, "reward", -182.9, 22.9),
    ("cartpole", "persim", 1, "reward", 197.7, 7.82), ("cartpole", "persim", 5, "reward", 185.7, 3.49),          # Table 10
    ("cartpole", "true-env-mpc", 4, "reward", 198.4, 7.20),
    ("halfcheetah", "persim", 1, "reward", 2124, 518), ("halfcheetah", "persim", 3, "reward", 472.0, 56.9),      # Table 11
    ("halfcheetah", "true-env-mpc", 1, "reward", 7459, 171)])
def test_the_papers_numbers(environment, method, agent, metric, number, spread):
    assert published.paper(cell(method, agent, environment=environment), metric) == (number, spread, "")


@pytest.mark.parametrize(("where", "metric", "number", "spread", "note"), [
    (cell("true-env-mpc", 3, environment="halfcheetah"), "reward", 66675, 9364, "unconfirmed"),                  # Table 11
    (cell("morel-p", 1, environment="cartpole", dataset="pure-eps-20"), "reward", 166.7, 13.6, "suspect"),       # Table 10
    (cell("morel-a", 5, dataset="pure-eps-40"), "reward", -492.1, 9.3, "suspect")])                              # Table 9
def test_the_papers_doubtful_numbers(where, metric, number, spread, note):
    value, deviation, words = published.paper(where, metric)
    assert (value, deviation) == (number, spread)
    assert note in words


def test_error_numbers_come_from_the_appendix_not_from_the_misprinted_table_1():
    """Table 1 has 0.04 for MountainCar, random, agent 1, and a copied HalfCheetah row (reference, section 9)."""
    assert published.paper(cell(agent=1), "rmse")[0] == 0.004
    assert published.paper(cell(environment="halfcheetah", dataset="pure"), "rmse")[0] == 1.401


@pytest.mark.parametrize(("method", "metric"), [("uniform", "reward"), ("pooled", "reward"), ("pooled", "rmse"),
                                                ("true-env-mpc", "rmse")])
def test_none_where_the_paper_has_none(method, metric):
    assert published.paper(cell(method), metric) is None


@pytest.mark.parametrize("environment", list(cases.ENVIRONMENTS))
def test_the_paper_has_all_five_agents_of_each_number_we_are_measured_by(environment):
    for agent in range(1, 6):
        for metric in ("reward", "rmse", "r2_median"):
            assert published.paper(cell(agent=agent, environment=environment), metric)
        assert published.paper(cell("true-env-mpc", agent, environment=environment), "reward")


def test_the_csv_calls_our_agents_by_the_same_covariates():
    """A wrong order of agents would put every number beside the wrong one."""
    with files("lowrank_rl.rl.bench").joinpath("paper_results.csv").open() as file:
        for row in csv.DictReader(file):
            new = row["table"] in ("12", "13")
            if (new or row["table"] in ("6", "7", "8", "9", "10", "11")) and row["agent"]:
                told = [float(part.partition("=")[2]) for part in row["agent_covariates"].split(";")]
                assert told == list(cases.covariates(row["environment"], int(row["agent"]) + 5 * new))
