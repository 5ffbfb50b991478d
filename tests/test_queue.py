"""The queue against a deque, whatever is pushed, and its size."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from vssl_core.errors import ConfigError
from vssl_core.nets.queue import Queue, queue_size
from vssl_core.objective import ClipSettings, Context

CONTEXT = Context(
    name="some",
    clip=ClipSettings(8, 16, 1),
    backbone=nn.Identity(),
    feature_dim=4,
    stages={},
    videos=9537,
    epochs=2,
    steps_per_epoch=158,
    batch_size=60,
    world_size=1,
)


@given(size=some.integers(1, 9), pushes=some.lists(some.integers(0, 12), max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_is_a_deque_of_bounded_length(size: int, pushes: list[int]) -> None:
    """After every push, the rows in order are those of a deque; rows that were never pushed are not among them."""
    queue, slow, row = Queue(size, 2), deque(maxlen=size), 0.0
    for count in pushes:
        rows = [(row + number, -row - number) for number in range(count)]
        row += count
        queue.push(torch.tensor(rows).reshape(count, 2))
        slow.extend(rows)
        assert [tuple(found) for found in queue.rows_in_order().tolist()] == list(slow)
        assert queue.rows.shape == (size, 2) and int(queue.filled) == len(slow)


def test_a_push_moves_no_other_row() -> None:
    queue = Queue(6, 3)
    before = queue.rows.clone()
    queue.push(torch.zeros(4, 3))
    assert torch.equal(queue.rows[4:], before[4:]) and not queue.rows[:4].any()


def test_it_starts_with_random_unit_rows_of_the_seed() -> None:
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        rows.append(Queue(5, 8).rows)
    torch.testing.assert_close(rows[0].norm(dim=1), torch.ones(5))
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_it_holds_no_graph_and_its_state_is_all_of_it() -> None:
    queue, other = Queue(5, 2), Queue(5, 2)
    queue.push(torch.randn(7, 2, requires_grad=True, dtype=torch.float64))
    assert not queue.rows.requires_grad and queue.rows.dtype == torch.float32
    other.load_state_dict(deepcopy(queue.state_dict()))
    more = torch.randn(3, 2)
    for one in (queue, other):
        one.push(more)
    assert torch.equal(queue.rows_in_order(), other.rows_in_order())
    assert torch.equal(queue.rows_in_order()[-3:], more)


def test_the_published_size_is_cut_to_whole_batches_of_the_list() -> None:
    assert queue_size(None, 65536, CONTEXT) == 9480 == 158 * 60
    assert queue_size(None, 65536, replace(CONTEXT, videos=240_000)) == 65520
    assert queue_size(None, 3840, replace(CONTEXT, batch_size=256)) == 3840
    assert queue_size(None, 100, replace(CONTEXT, batch_size=256)) == 100  # smaller than a batch: as published
    assert queue_size(77, 65536, CONTEXT) == 77 and queue_size(9537, 65536, CONTEXT) == 9537


def test_more_rows_than_videos_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.some\.queue: 9538 rows .* 9537 videos .* choose at most 9537"):
        queue_size(9538, 65536, CONTEXT)
