"""Pieces of work on several threads: the same results as one after another, and torch's own threads out of the way."""

import threading

import pytest
import torch

from lowrank_rl.threads import side_by_side, torch_threads


def here(piece):
    return piece, torch.get_num_threads(), threading.get_ident(), torch.is_grad_enabled()


@pytest.fixture(autouse=True)
def _as_it_was():
    with torch_threads(3):
        yield


def test_results_come_in_order_from_several_threads_that_take_one_each():
    meet = threading.Barrier(3, timeout=60)      # breaks unless three are at work at once

    def piece(i):
        if i < 3:
            meet.wait()
        return here(i)
    found = side_by_side(piece, range(7), 3)
    assert [i for i, *_ in found] == list(range(7))
    assert {threads for _, threads, *_ in found} == {1}
    assert len({ident for *_, ident, _ in found}) == 3
    assert not any(grad for *_, grad in found)
    assert torch.get_num_threads() == 3


def test_a_single_piece_gets_all_threads():
    assert side_by_side(here, ["only"], 2) == [("only", 2, threading.get_ident(), False)]
    assert side_by_side(here, [], 2) == []
    assert torch.get_num_threads() == 3


def test_one_thread_is_a_plain_loop():
    assert side_by_side(here, [5, 6], 1) == [(i, 1, threading.get_ident(), False) for i in (5, 6)]
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()


def test_pieces_may_be_cut_further():
    """A piece that is cut again runs on its own thread."""
    def piece(i):
        return side_by_side(here, [10 * i, 10 * i + 1], torch.get_num_threads())
    found = side_by_side(piece, [1, 2], 2)
    assert [[i for i, *_ in inner] for inner in found] == [[10, 11], [20, 21]]
    assert all(inner[0][2] == inner[1][2] for inner in found)


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_come_through_and_leave_no_trace(threads):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda i: 1 / i, [1, 0, 2], threads)
    assert torch.get_num_threads() == 3
    assert side_by_side(lambda i: -i, [1, 2], threads) == [-1, -2]
