"""Files: bits go round, spoiled files are refused, a failed save harms nothing."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lowrank_rl import files
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor import AdamConfig, Categorical, FunctionalCP, Neural, io
from lowrank_rl.tensor.modes import INITS

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3), "empty": torch.zeros(0, 2)}
HEADER = {"history": [{"loss": 0.1, "held_out": None}], "name": "Fichtelgebirge \u00fc"}
TABLE_AND_NETWORK = (Categorical(4), Neural(2, hidden=(3,)))
MODES = st.lists(st.one_of(st.builds(Categorical, st.integers(1, 4), st.sampled_from(INITS)),
                           st.builds(Neural, st.integers(1, 2), st.sampled_from([(), (3,), (3, 2)]),
                                     st.sampled_from(["relu", "tanh"]))), min_size=2, max_size=3)


def entries(modes, outputs: int, count: int = 12):
    draw = numpy_stream(0, "io")
    X = [draw.integers(mode.size, size=count) if isinstance(mode, Categorical) else draw.normal(size=(count, mode.inputs))
         for mode in modes]
    return X, draw.normal(size=(count, outputs))


def fitted(modes=TABLE_AND_NETWORK, outputs: int = 2, **changes) -> FunctionalCP:
    options = {"rank": 2, "solver": AdamConfig(epochs=2, batch=5, held_out=0.2), **changes}
    return FunctionalCP(list(modes), outputs=outputs, **options).fit(*entries(modes, outputs))


def same(one: FunctionalCP, other: FunctionalCP) -> bool:
    X, _ = entries(one.modes, one.outputs)
    state, other_state = one.module_.state_dict(), other.module_.state_dict()
    return (state.keys() == other_state.keys() and all(torch.equal(state[k], other_state[k]) for k in state)
            and np.array_equal(one.predict_members(X), other.predict_members(X))
            and one.get_params() == other.get_params()
            and (one.history_, one.stopped_, one.n_iter_) == (other.history_, other.stopped_, other.n_iter_))


# Round trips

def test_tensors_and_header_go_round(tmp_path):
    io.save(tmp_path / "new" / "folder" / "file", "thing", TENSORS, HEADER)
    tensors, header = io.load(tmp_path / "new" / "folder" / "file", "thing")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert header == {**HEADER, "kind": "thing", "schema": io.SCHEMA}
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["file"]


def test_views_and_shared_memory_go_round(tmp_path):
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    views = {"whole": base, "turned": base.T, "part": base[1:, ::2]}
    io.save(tmp_path / "file", "thing", views, {})
    for name, tensor in io.load(tmp_path / "file", "thing")[0].items():
        assert torch.equal(tensor, views[name])


@settings(deadline=None, max_examples=20)
@given(MODES, st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.booleans(), st.data())
def test_a_model_comes_back_bit_for_bit(modes, rank, outputs, members, normalize, data):
    model = fitted(modes, outputs, rank=rank, members=members, normalize=normalize, random_state=3,
                   output_mode=data.draw(st.sampled_from([None, *range(len(modes))])))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        again = FunctionalCP.load(Path(folder) / "model")
        assert same(model, again)
        again.save(str(Path(folder) / "again"))
        assert same(model, FunctionalCP.load(str(Path(folder) / "again")))
    X, y = entries(modes, outputs)
    assert np.array_equal(again.fit(X, y).predict(X), model.predict(X))   # the settings came back, too


def test_sizes_from_numpy_can_be_saved(tmp_path):
    """Categorical(agent.max() + 1) is what one writes."""
    modes = (Categorical(np.arange(4).max() + 1), Neural(np.int64(2), hidden=(np.int32(3),)))
    model = fitted(modes, rank=np.int64(2), random_state=np.int64(5))
    model.save(tmp_path / "model")
    assert same(model, FunctionalCP.load(tmp_path / "model"))


def test_double_precision_survives_a_single_precision_session(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        model = fitted()
    finally:
        torch.set_default_dtype(torch.float32)
    model.save(tmp_path / "model")
    assert same(model, FunctionalCP.load(tmp_path / "model"))


# Spoiled files

@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("model") / "model"
    fitted().save(file)
    return file


def attempt(content: bytes) -> FunctionalCP | None:
    """The model in a file of these bytes; None if it was refused in good order."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spoiled").write_bytes(content)
        try:
            return FunctionalCP.load(Path(folder) / "spoiled")
        except ValueError as error:
            if "spoiled: expected a" in str(error):
                return None
            raise


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_no_flipped_byte_changes_a_model_unnoticed(model_file, where, flip):
    whole = model_file.read_bytes()
    at = int(where * len(whole))
    spoiled = attempt(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1:])
    assert spoiled is None or same(spoiled, FunctionalCP.load(model_file))


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(model_file, where):
    whole = model_file.read_bytes()
    assert attempt(whole[:int(where * len(whole))]) is None


def test_what_is_said_about_spoiled_files(model_file, tmp_path):
    whole, file = model_file.read_bytes(), tmp_path / "spoiled"
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"spoiled: expected a saved FunctionalCP, got a corrupt or truncated file .*restore"):
        FunctionalCP.load(file)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="its checksum disagrees"):
        FunctionalCP.load(file)


def test_other_peoples_files_are_refused(tmp_path):
    for name, meta in (("bare", None), ("odd", {"lowrank_rl": "[1, 2]"}), ("claim", {"lowrank_rl": '{"kind": "thing"}'}),
                       ("schema", {"lowrank_rl": '{"kind": "thing", "schema": 1}'})):
        save_file({"weight": torch.zeros(3)}, tmp_path / name, meta)
        with pytest.raises(ValueError, match=f"{name}: expected a thing of schema 1, got kind None of schema None; make it"):
            io.load(tmp_path / name, "thing")
    save_file({"weight": torch.zeros(3)}, tmp_path / "text", {"lowrank_rl": "no json"})
    with pytest.raises(ValueError, match="text: expected a saved thing, got a corrupt or truncated file"):
        io.load(tmp_path / "text", "thing")


def test_another_kind_or_schema_is_refused(tmp_path, monkeypatch):
    io.save(tmp_path / "thing", "thing", TENSORS, HEADER)
    with pytest.raises(ValueError, match="expected a FunctionalCP of schema 1, got kind 'thing' of schema 1"):
        FunctionalCP.load(tmp_path / "thing")
    monkeypatch.setattr(io, "SCHEMA", 2)
    with pytest.raises(ValueError, match="expected a thing of schema 2, got kind 'thing' of schema 1; make it again"):
        io.load(tmp_path / "thing", "thing")


def test_a_model_file_with_missing_parts_is_refused(tmp_path):
    """Right kind, right checksum, wrong content: say, written by a later version."""
    model = fitted()
    model.save(tmp_path / "model")
    tensors, header = io.load(tmp_path / "model", "FunctionalCP")
    content = {k: v for k, v in header.items() if k not in ("kind", "schema")}
    spoiled = [(tensors, {k: v for k, v in content.items() if k != "stopped"}),
               (tensors, {**content, "params": {**content["params"], "colour": 1}}),
               (tensors, {**content, "params": {**content["params"], "rank": 3}}),
               ({k: v for k, v in tensors.items() if k != "center"}, content)]
    for some_tensors, some_header in spoiled:
        io.save(tmp_path / "spoiled", "FunctionalCP", some_tensors, some_header)
        with pytest.raises(ValueError, match="expected a whole FunctionalCP file, got one with missing or odd parts"):
            FunctionalCP.load(tmp_path / "spoiled")


def test_no_file_is_said_as_such(tmp_path):
    none = tmp_path / "none"
    for path, got in ((none, "no such file"), (none / "below", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"{path.name}: expected a saved FunctionalCP, got {got}"):
            FunctionalCP.load(path)


# Saving that fails

def test_places_that_cannot_be_written(tmp_path):
    model = fitted()
    model.save(tmp_path / "file")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(ValueError, match=r"expected a place that can be written, got .*nothing was overwritten"):
            model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert same(model, FunctionalCP.load(tmp_path / "file"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o400])
def test_a_locked_folder(tmp_path, mode):
    model, folder = fitted(), tmp_path / "locked"
    model.save(folder / "model")
    folder.chmod(mode)
    try:
        with pytest.raises(ValueError, match="expected a place that can be written"):
            fitted(random_state=1).save(folder / "model")
    finally:
        folder.chmod(0o700)
    assert same(model, FunctionalCP.load(folder / "model"))


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_save_that_fails_halfway_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    old, new = fitted(), fitted(random_state=1)
    old.save(tmp_path / "model")

    def full_disk(*arguments):
        if step == "write":
            Path(arguments[1]).write_bytes(b"half a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((io, "save_file") if step == "write" else (files.os, "replace")), full_disk)
    with pytest.raises(ValueError, match=r"model: expected a place that can be written, got .*No space left on device"):
        new.save(tmp_path / "model")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert same(old, FunctionalCP.load(tmp_path / "model"))
    new.save(tmp_path / "model")
    assert same(new, FunctionalCP.load(tmp_path / "model"))


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    """safetensors alone would let nobody else."""
    io.save(tmp_path / "a.safetensors", "A", {"x": torch.zeros(1)}, {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
