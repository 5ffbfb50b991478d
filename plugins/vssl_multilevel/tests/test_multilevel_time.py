"""Motion excitation against the module written down plainly, and orders that are never the old one."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vssl_core import Batch, Sample
from vssl_multilevel.levels import Level, MotionExcitation, reordered
from vssl_multilevel.orders import changed_orders, shuffled_orders


class Plain(nn.Module):
    """Motion excitation as Li et al. draw it, on whole maps, and the average over space behind it."""

    def __init__(self, fast: MotionExcitation) -> None:
        super().__init__()
        self.squeeze, self.transform, self.expand = fast.squeeze, fast.transform, fast.expand

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T)."""
        squeezed = self.squeeze(maps)
        steps = []
        for time in range(maps.shape[2]):
            if time + 1 < maps.shape[2]:
                steps.append(self.transform(squeezed[:, :, time + 1]) - squeezed[:, :, time])
            else:
                steps.append(torch.zeros_like(squeezed[:, :, time]))
        motion = torch.stack(steps, dim=2).mean(dim=(3, 4), keepdim=True)  # (B, c, T, 1, 1)
        gate = torch.sigmoid(self.expand(motion.flatten(2))) - 0.5
        return (maps + maps * gate[..., None, None]).mean(dim=(3, 4))


def excitation(channels: int = 32, seed: int = 0) -> MotionExcitation:
    torch.manual_seed(seed)
    made = MotionExcitation(channels, 16)
    for norm in (made.squeeze[1], made.expand[1]):
        nn.init.normal_(norm.weight, 1.0, 0.5)
        nn.init.normal_(norm.bias, 0.0, 0.5)
    return made


def a_map(channels: int = 32, timestamps: int = 4, videos: int = 3, seed: int = 0) -> Tensor:
    shape = (videos, channels, timestamps, 5, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("train", [True, False])
@given(timestamps=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_it_is_the_plain_module_in_any_order(train, timestamps, seed):
    fast = excitation(seed=seed).train(train)
    maps = a_map(timestamps=timestamps, seed=seed)
    order = torch.stack([torch.randperm(timestamps) for _ in maps])
    pooled = fast(maps)
    torch.testing.assert_close(fast.excite(pooled), Plain(fast)(maps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.excite(pooled, order), Plain(fast)(reordered(maps, order)), rtol=1e-4, atol=1e-4)


def test_a_gate_of_zero_is_the_identity():
    fast = excitation()
    nn.init.zeros_(fast.expand[1].weight)
    nn.init.zeros_(fast.expand[1].bias)
    maps = a_map()
    torch.testing.assert_close(fast.excite(fast(maps)), maps.mean(dim=(3, 4)))


def test_nothing_follows_the_last_timestamp():
    torch.manual_seed(0)
    fast, maps = MotionExcitation(32, 16).eval(), a_map()  # as it is built
    excited, plain = fast.excite(fast(maps)), maps.mean(dim=(3, 4))
    torch.testing.assert_close(excited[:, :, -1], plain[:, :, -1])
    assert (excited[:, :, :-1] - plain[:, :, :-1]).abs().max() > 1e-5


@pytest.mark.parametrize("reduction", [None, 16])
def test_only_excited_motion_sees_the_order(reduction):
    torch.manual_seed(0)
    level, maps = Level(32, ["order"], reduction, 8), a_map()
    pooled, backwards = level(maps), torch.arange(3, -1, -1).expand(3, -1)
    there, back = level.rows("order", level.excite(pooled)), level.rows("order", level.excite(pooled, backwards))
    assert torch.allclose(there, back, atol=1e-5) == (reduction is None)


def test_few_channels_are_squeezed_to_one():
    assert MotionExcitation(8, 16)(a_map(8)).seen.shape == (3, 1, 4)


def test_gradients_reach_the_map_and_every_parameter_in_a_changed_order():
    fast, maps = excitation(), a_map().requires_grad_()
    fast.excite(fast(maps), torch.tensor([[2, 0, 1, 3]] * 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [maps, *fast.parameters()])


# Orders ---------------------------------------------------------------------------------------------------------------


def batch(videos: int = 5, seed: int = 0) -> Batch:
    samples = [Sample(seed, 0, 0, video) for video in range(videos)]
    return Batch("multilevel", {}, torch.arange(videos), samples, epoch=0, progress=0.0, encode=None)


@given(timestamps=st.integers(2, 9), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_changed_orders_are_orders_and_never_the_old_one(timestamps, seed):
    for half in changed_orders(batch(seed=seed), "low", timestamps, ("shuffle", "reverse")):
        assert len(half) == 2
        for order in half:
            assert torch.equal(order.sort(dim=1).values, torch.arange(timestamps).expand(5, -1))
            assert (order != torch.arange(timestamps)).any(dim=1).all()
        assert any(torch.equal(order, torch.arange(timestamps).flip(0).expand(5, -1)) for order in half)


def test_halves_videos_levels_and_epochs_are_shuffled_by_themselves():
    first, second = (half[0] for half in changed_orders(batch(), "low", 8, ("shuffle",)))
    assert len({tuple(order) for order in [*first.tolist(), *second.tolist()]}) == 10
    others = [changed_orders(batch(), "mid", 8, ("shuffle",)), changed_orders(batch(seed=1), "low", 8, ("shuffle",))]
    assert all(not torch.equal(first, other[0][0]) for other in others)
    again = changed_orders(batch(videos=3), "low", 8, ("shuffle",))[0][0]
    assert torch.equal(again, first[:3])  # they belong to the video, not to its batch


def test_all_other_orders_are_equally_likely():
    draws = torch.rand(20_000, 8, 3, generator=torch.Generator().manual_seed(0))
    seen = Counter(tuple(order) for order in shuffled_orders(draws).tolist())
    assert set(seen) == set(permutations(range(3))) - {(0, 1, 2)}
    assert max(seen.values()) < 1.1 * min(seen.values())


def test_where_every_draw_is_the_old_order_it_is_the_reverse():
    assert shuffled_orders(torch.arange(4.0).expand(2, 8, 4)).tolist() == [[3, 2, 1, 0]] * 2


def test_reordering_puts_timestamps_in_their_places():
    values = torch.arange(24.0).view(2, 1, 4, 3)
    order = torch.tensor([[3, 2, 1, 0], [1, 0, 3, 2]])
    found = reordered(values, order)
    assert torch.equal(found[0], values[0].flip(1)) and torch.equal(found[1], values[1][:, [1, 0, 3, 2]])
    assert reordered(values, None) is values


def test_half_precision_does_not_reach_the_average():
    torch.manual_seed(0)
    fast, maps = MotionExcitation(32, 16), a_map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = fast(maps)
        excited = fast.excite(pooled)
    assert pooled.values.dtype == pooled.seen.dtype == excited.dtype == torch.float32
    assert F.mse_loss(excited, Plain(fast)(maps)) < 1e-2
