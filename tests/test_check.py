"""check: what passes, what is refused, and the sentence of the refusal."""

import math
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl import check

LETTERED = st.dictionaries(st.sampled_from(string.ascii_uppercase), st.integers(0, 4), min_size=1, max_size=4)


def test_shapes_by_hand():
    sizes = check.shapes(state=(torch.zeros(5, 7, 3), "M B D"), action=(np.zeros((7, 2)), "B A"))
    assert sizes == {"M": 5, "B": 7, "D": 3, "A": 2}
    assert check.shapes(square=(np.eye(3), "N N"), scalar=(np.array(1.0), "")) == {"N": 3}


@settings(deadline=None, max_examples=40)
@given(LETTERED, st.data())
def test_shapes_gives_every_letter_its_size_and_notices_any_change(size, data):
    words = data.draw(st.lists(st.lists(st.sampled_from(sorted(size)), min_size=1, max_size=3), min_size=1, max_size=3))
    named = {f"x{i}": (np.zeros([size[w] for w in word]), " ".join(word)) for i, word in enumerate(words)}
    used = {letter for word in words for letter in word}
    assert check.shapes(**named) == {letter: size[letter] for letter in used}

    axis = data.draw(st.integers(0, len(words[0]) - 1))   # one more array, longer along one axis that is known by now
    odd = [size[w] + (k == axis) for k, w in enumerate(words[0])]
    with pytest.raises(ValueError, match=f"odd: axis {words[0][axis]} is {odd[axis]}, earlier inputs say"):
        check.shapes(**named, odd=(torch.zeros(odd), " ".join(words[0])))
    with pytest.raises(ValueError, match=r"flat: expected axes \(.*\), got shape"):
        check.shapes(flat=(np.zeros((1, *odd)), " ".join(words[0])))


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_finite_counts_and_locates(make):
    check.finite("x", make([1, 2, 3]))
    check.finite("x", make([[1.0, -1e30]]))
    check.finite("x", make([]))
    with pytest.raises(ValueError, match=r"x: 2 of 6 values are NaN or Inf, the first at \(0, 2\)"):
        check.finite("x", make([[0.0, 1.0, math.inf], [math.nan, 0.0, 0.0]]))


def test_counts():
    check.count("rank", 1)
    check.count("rank", np.int64(3))
    check.count("patience", 0, 0)
    for value in (0, -1, 2.5, 3.0, True, "3", None):
        with pytest.raises(ValueError, match=f"rank: expected a whole number >= 1, got {value!r}"):
            check.count("rank", value)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_within(make):
    check.within("i", make([0, 4, 2]), 5)
    check.within("i", make([]), 5)
    with pytest.raises(ValueError, match=r"i: expected integers 0\.\.4, got values 0\.\.5"):
        check.within("i", make([0, 5]), 5)
    with pytest.raises(ValueError, match=r"i: expected integers 0\.\.4, got values -1\.\.0"):
        check.within("i", make([0, -1]), 5)


def test_an_unknown_name_lists_the_known_ones():
    check.known("solver", "als", iter(["als", "adam"]))
    with pytest.raises(ValueError, match="unknown solver 'sgd'; known: als, adam"):
        check.known("solver", "sgd", iter(["als", "adam"]))


def test_writable_folder(tmp_path):
    folder = check.writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="expected one that can be written"):
            check.writable_folder(taken)
    assert (tmp_path / "file").read_text() == "mine"
