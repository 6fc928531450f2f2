"""Streams against the arrays that they are made of."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.tensor.stream import Stream

SHAPE = (7, 9, 5)


def entries(count=1000, weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    index = np.stack([rng.integers(0, n, count) for n in SHAPE], axis=1)
    return index, rng.standard_normal(count), rng.random(count) + 0.5 if weighted else None


def whole(stream):
    index, value, weight = zip(*stream.chunks(), strict=True)
    return np.concatenate(index, axis=1), np.concatenate(value), None if weight[0] is None else np.concatenate(weight)


def same(one, two):
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def parquet(path, index, value, weight=None, group=137, **changes):
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"user": index[:, 0], "item": index[:, 1], "time": index[:, 2], "y": value}
    columns |= {} if weight is None else {"w": weight}
    pq.write_table(arrow.table(columns | changes), path, row_group_size=group, write_page_checksum=True)
    return path


MODES = ["user", "item", "time"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float64])
def test_chunks_of_arrays_are_the_arrays(dtype, weighted):
    index, value, weight = entries(weighted=weighted)
    stream = Stream.from_arrays(index.astype(dtype), value, weight=weight, chunk=64)
    assert stream.shape == SHAPE
    assert len(stream) == 1000
    assert max(len(v) for _, v, _ in stream.chunks()) == 64
    assert all(i.dtype == np.int32 and i.flags.c_contiguous and v.dtype == np.float64 for i, v, _ in stream.chunks())
    assert same(whole(stream), (index.T, value, weight))
    assert same(whole(stream), whole(stream))


def test_a_memory_map_is_an_array(tmp_path):
    index, value, _ = entries()
    np.save(tmp_path / "index.npy", index)
    np.save(tmp_path / "value.npy", value.astype(np.float32))
    stream = Stream.from_arrays(np.load(tmp_path / "index.npy", mmap_mode="r"), np.load(tmp_path / "value.npy", mmap_mode="r"),
                                shape=(10, 10, 10), chunk=99)
    assert stream.shape == (10, 10, 10)
    assert same(whole(stream), (index.T, value.astype(np.float32), None))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [50, 137, 10_000])
def test_parquet_gives_what_was_written(tmp_path, chunk, weighted):
    index, value, weight = entries(weighted=weighted)
    stream = Stream.from_parquet(parquet(tmp_path / "a.parquet", index, value, weight), MODES, "y",
                                 weight="w" if weighted else None, chunk=chunk)
    assert stream.shape == SHAPE
    assert len(stream) == 1000
    assert same(whole(stream), (index.T, value, weight))
    assert max(len(v) for _, v, _ in stream.chunks()) <= chunk


def test_a_folder_a_list_and_one_file_say_the_same(tmp_path):
    index, value, _ = entries()
    one = parquet(tmp_path / "one.parquet", index, value)
    folder = tmp_path / "folder"
    folder.mkdir()
    for n in range(3):
        parquet(folder / f"part-{n}.parquet", index[n * 350:(n + 1) * 350], value[n * 350:(n + 1) * 350])
    (folder / ".half.parquet").write_bytes(b"nothing")
    for path in (str(one), folder, sorted(folder.glob("part*"))):
        assert same(whole(Stream.from_parquet(path, MODES, "y")), (index.T, value, None))


def streams(tmp_path, weighted=False, chunk=64):
    index, value, weight = entries(weighted=weighted)
    return [Stream.from_arrays(index, value, weight=weight, chunk=chunk),
            Stream.from_parquet(parquet(tmp_path / "a.parquet", index, value, weight), MODES, "y",
                                weight="w" if weighted else None, chunk=chunk)]


def test_a_split_parts_the_entries_and_is_the_same_for_both_makers(tmp_path):
    one, two = streams(tmp_path, weighted=True)
    train, held_out = one.split(0.3, seed=1)
    assert 250 < len(held_out) < 350
    assert len(train) + len(held_out) == 1000
    values = np.concatenate([whole(train)[1], whole(held_out)[1]])
    assert len(whole(train)[1]) == len(train)
    assert all(i.flags.c_contiguous for i, _, _ in train.chunks())
    assert np.array_equal(np.sort(values), np.sort(whole(one)[1]))
    for a, b in zip(one.split(0.3, seed=1), two.split(0.3, seed=1), strict=True):
        assert same(whole(a), whole(b))
    assert not same(whole(one.split(0.3, seed=2)[0]), whole(train))
    again = replace(one, chunk=17).split(0.3, seed=1)[0]
    assert same(whole(again), whole(train))


def test_a_split_of_a_split_with_the_same_seed_is_a_new_draw():
    index, value, _ = entries(10_000)
    train, _ = Stream.from_arrays(index, value).split(0.5, seed=3)
    half, other = train.split(0.5, seed=3)
    assert abs(len(half) / len(train) - 0.5) < 0.05
    assert not set(whole(half)[1]) & set(whole(other)[1])


def test_a_split_is_independent_of_place():
    index, value, _ = entries(40_000)
    value = np.arange(40_000.0)
    held_out = whole(Stream.from_arrays(index, value).split(0.25, seed=5)[1])[1]
    by_place = np.bincount(held_out.astype(int) // 4000, minlength=10)
    assert (abs(by_place - 1000) < 5 * np.sqrt(1000 * 0.75)).all()
    assert abs((held_out % 2).mean() - 0.5) < 0.03


def test_a_sample_is_of_the_streams_entries_without_repeats(tmp_path):
    one, two = streams(tmp_path, weighted=True)
    index, value, weight = one.sample(200, seed=0)
    assert index.shape == (3, 200)
    assert len(set(value)) == 200
    place = {v: n for n, v in enumerate(whole(one)[1])}
    rows = [place[v] for v in value]
    assert rows == sorted(rows)
    assert np.array_equal(whole(one)[0][:, rows], index)
    assert np.array_equal(whole(one)[2][rows], weight)
    assert same(two.sample(200, seed=0), (index, value, weight))
    assert same(one.sample(1000, seed=0), whole(one))
    train, held_out = one.split(0.5, seed=0)
    assert set(held_out.sample(100, seed=0)[1]) <= set(whole(held_out)[1])
    assert set(train.sample(100, seed=0)[1]) <= set(whole(train)[1])


def test_samples_are_uniform():
    index = np.zeros((40, 2), int)
    stream = Stream.from_arrays(index, np.arange(40.0))
    times = sum(np.bincount(stream.sample(10, seed=s)[1].astype(int), minlength=40) for s in range(800))
    assert (abs(times - 200) < 5 * np.sqrt(150)).all()


def test_shards_make_up_the_stream_and_travel(tmp_path):
    for stream in streams(tmp_path):
        for whole_stream in (stream, stream.split(0.4, seed=2)[0]):
            parts = [pickle.loads(pickle.dumps(part)) for part in whole_stream.shards(3)]
            assert sum(map(len, parts)) == len(whole_stream)
            assert [len(part) for part in parts] == [len(whole(part)[1]) for part in parts]
            pieces = [whole(part) for part in parts]
            assert np.array_equal(np.concatenate([p[0] for p in pieces], axis=1), whole(whole_stream)[0])
            assert np.array_equal(np.concatenate([p[1] for p in pieces]), whole(whole_stream)[1])
            sample = parts[1].sample(len(parts[1]), seed=0)
            assert same(sample, pieces[1])
    index, value, _ = entries(3)
    assert len(Stream.from_arrays(index, value).shards(8)) == 3


def test_bad_arrays_are_refused():
    index, value, _ = entries()
    bad = index.copy()
    bad[700, 1] = 9
    with pytest.raises(ValueError, match="index, mode 1, row 700: expected integers 0..8, got 9"):
        Stream.from_arrays(bad, value, SHAPE, chunk=64)
    with pytest.raises(ValueError, match="index, mode 1, row 700: expected integers 0.*, got -9"):
        Stream.from_arrays(bad * (1 - 2 * (bad == 9)), value, chunk=64)
    with pytest.raises(ValueError, match="index, mode 0, row 3: expected whole numbers, got 0.5"):
        Stream.from_arrays(np.where(np.arange(1000)[:, None] == 3, 0.5, index), value)
    with pytest.raises(ValueError, match="index, mode 0, row 3: expected whole numbers, got nan"):
        Stream.from_arrays(np.where(np.arange(1000)[:, None] == 3, np.nan, index), value)
    with pytest.raises(ValueError, match="value, row 999: expected finite numbers, got inf"):
        Stream.from_arrays(index, np.append(value[:-1], np.inf))
    with pytest.raises(ValueError, match="weight, row 0: expected positive finite weights, got 0.0"):
        Stream.from_arrays(index, value, weight=np.arange(1000.0))
    with pytest.raises(ValueError, match="at least one observed entry"):
        Stream.from_arrays(index[:0], value[:0])
    with pytest.raises(ValueError, match="axis B is 999"):
        Stream.from_arrays(index, value[:-1])
    with pytest.raises(ValueError, match="at least two modes"):
        Stream.from_arrays(index[:, :1], value)
    with pytest.raises(ValueError, match="a size for each of 3 modes"):
        Stream.from_arrays(index, value, (9, 9))
    with pytest.raises(ValueError, match="smaller than 2\\^31"):
        Stream.from_arrays(index, value, (9, 9, 2**31))
    for wrong in (index.astype(str), index.tolist(), index.astype(complex), index.astype("M8[s]")):
        with pytest.raises(ValueError, match="index: expected a NumPy array of numbers"):
            Stream.from_arrays(wrong, value)
    with pytest.raises(ValueError, match="chunk"):
        Stream.from_arrays(index, value, chunk=0)


def test_large_values_are_no_infinities():
    stream = Stream.from_arrays(np.zeros((2, 2), int), np.array([1e200, -1e300]))
    assert whole(stream)[1].tolist() == [1e200, -1e300]


def test_an_array_that_changes_after_the_first_pass_is_refused():
    index, value, _ = entries()
    stream = Stream.from_arrays(index, value)
    index[5, 0] = 1000
    with pytest.raises(ValueError, match="mode 0, row 5"):
        whole(stream)


def test_bad_requests_are_refused():
    index, value, _ = entries()
    stream = Stream.from_arrays(index, value)
    for fraction in (0, 1, -0.5):
        with pytest.raises(ValueError, match="fraction: expected the share"):
            stream.split(fraction, seed=0)
    with pytest.raises(ValueError, match="leaves entries on both sides"):
        stream.split(1e-9, seed=0)
    with pytest.raises(ValueError, match="count: expected at most 1000"):
        stream.sample(1001, seed=0)


def test_bad_parquet_is_refused(tmp_path):
    index, value, _ = entries()
    good = parquet(tmp_path / "good.parquet", index, value)
    with pytest.raises(ValueError, match="unknown column of .*'price'; known: user, item, time, y"):
        Stream.from_parquet(good, MODES, "price")
    with pytest.raises(ValueError, match="all different"):
        Stream.from_parquet(good, MODES, "user")
    with pytest.raises(ValueError, match="got no such file"):
        Stream.from_parquet(tmp_path / "none.parquet", MODES, "y")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least one parquet file"):
        Stream.from_parquet(tmp_path / "empty", MODES, "y")
    with pytest.raises(ValueError, match="at least one observed entry"):
        Stream.from_parquet(parquet(tmp_path / "no.parquet", index[:0], value[:0]), MODES, "y")
    text = parquet(tmp_path / "text.parquet", index, value, user=[f"u{i}" for i in index[:, 0]])
    with pytest.raises(ValueError, match="column 'user': expected row numbers, got string; number the labels first"):
        Stream.from_parquet(text, MODES, "y")
    with pytest.raises(ValueError, match="column 'y': expected numbers, got string"):
        Stream.from_parquet(parquet(tmp_path / "t.parquet", index, value, y=["1.5"] * 1000), MODES, "y")
    nulls = parquet(tmp_path / "null.parquet", index, value, item=[*index[:-5, 1].tolist(), None, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="null.parquet, column 'item', row 995: expected no nulls"):
        Stream.from_parquet(nulls, MODES, "y", chunk=60)
    out = index.copy()
    out[400, 2] = 50
    with pytest.raises(ValueError, match="out.parquet, column 'time', row 400: expected integers 0..4, got 50"):
        Stream.from_parquet(parquet(tmp_path / "out.parquet", out, value), MODES, "y", SHAPE, chunk=60)


@pytest.mark.parametrize("damage", ["truncated", "page", "text", "empty"])
def test_damaged_parquet_is_refused(tmp_path, damage):
    index, value, _ = entries()
    path = parquet(tmp_path / "a.parquet", index, value)
    data = bytearray(path.read_bytes())
    if damage == "page":
        at = len(data) // 3
        data[at:at + 8] = bytes(255 - b for b in data[at:at + 8])
    path.write_bytes({"truncated": data[:len(data) // 2], "page": data, "text": b"user,item\n1,2\n", "empty": b""}[damage])
    with pytest.raises(ValueError, match="a.parquet: expected a parquet file, got a corrupt or truncated one"):
        Stream.from_parquet(path, MODES, "y")


def test_a_file_that_is_replaced_between_passes_is_refused(tmp_path):
    index, value, _ = entries()
    stream = Stream.from_parquet(parquet(tmp_path / "a.parquet", index, value), MODES, "y")
    parquet(tmp_path / "a.parquet", index[:500], value[:500])
    with pytest.raises(ValueError, match="make the stream again"):
        whole(stream)


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install 'lowrank_rl\\[table\\]'"):
        Stream.from_parquet(tmp_path / "a.parquet", MODES, "y")


MEMORY = """
import sys, tracemalloc
import numpy as np
from lowrank_rl.tensor.stream import Stream
tracemalloc.start()
if sys.argv[1] == "arrays":
    load = lambda name: np.load(f"{sys.argv[2]}/{name}.npy", mmap_mode="r")
    stream = Stream.from_arrays(load("index"), load("value"), chunk=100_000)
    native = lambda: 0
else:
    import pyarrow
    stream = Stream.from_parquet(f"{sys.argv[2]}/a.parquet", ["user", "item", "time"], "y", chunk=100_000)
    native = pyarrow.default_memory_pool().max_memory
train, held_out = stream.split(0.1, seed=0)
held_out.sample(1000, seed=0)
total = sum(float(value.sum()) for _, value, _ in train.chunks())
assert len(stream) == 2_000_000
print(tracemalloc.get_traced_memory()[1] + native())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "parquet"])
def test_memory_is_bounded_by_the_chunk(tmp_path, kind):
    index, value, _ = entries(2_000_000)   # 64 MB
    if kind == "arrays":
        np.save(tmp_path / "index.npy", index)
        np.save(tmp_path / "value.npy", value)
    else:
        parquet(tmp_path / "a.parquet", index, value, group=2_000_000)
    out = subprocess.run([sys.executable, "-c", MEMORY, kind, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(out.stdout) < (20e6 if kind == "arrays" else 60e6)   # parquet decodes pages of its own size


def test_units_and_root_mean_square():
    rng = np.random.default_rng(5)
    index, value, weight = rng.integers(0, 9, (500, 3)), rng.standard_normal(500), rng.random(500) + 0.1
    stream = Stream.from_arrays(index, value, weight=weight, chunk=64)
    assert stream.root_mean_square() == pytest.approx(np.sqrt(np.average(value**2, weights=weight)), rel=1e-12)
    halved = stream.scaled(2.0)
    np.testing.assert_allclose(np.concatenate([v for _, v, _ in halved.chunks()]), value / 2)
    np.testing.assert_allclose(halved.sample(40, seed=1)[1], stream.sample(40, seed=1)[1] / 2)
    assert halved.scaled(3.0).root_mean_square() == pytest.approx(stream.root_mean_square() / 6, rel=1e-12)
    assert Stream.from_arrays(index, np.zeros(500)).root_mean_square() == 1.0
