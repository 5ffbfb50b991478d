"""What ranks exchange, and batch normalisation over them: two real gloo processes against one,."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vssl_core import distributed
from vssl_core.nets.batchnorm import SyncBatchNorm, still, synchronise
from vssl_core.testing import on_ranks

RANKS = 2
UNEVEN = (slice(0, 3), slice(3, 8))  # rank 0 has three rows, rank 1 has five
Job = Callable[[int], Any]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """The same numbers in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def mine(rows: Tensor, rank: int) -> Tensor:
    """The rows of one rank, as many for each, to be differentiated."""
    return rows.chunk(RANKS)[rank].clone().requires_grad_()


# Jobs: each runs on both ranks; the tests below compare with one process that holds all rows --------------------------


def contrast(rows: Tensor, others: Tensor) -> Tensor:
    """A loss in which every row meets all rows: what in-batch negatives do."""
    return (rows @ others.T).exp().sum(dim=1).log().mean()


def job_identity(rank: int) -> Any:
    return distributed.rank(), distributed.world_size()


def job_gather(rank: int) -> Any:
    rows = mine(numbers(6, 4), rank)
    everyone = distributed.gather(rows)
    loss = contrast(rows, everyone)
    loss.backward()
    return everyone.detach(), loss.detach(), rows.grad


def job_gather_strided(rank: int) -> Any:
    return distributed.gather(numbers(4, 6).T.chunk(RANKS)[rank])


MASKS = {
    "whole": [True] * 8,
    "one rank only": [True, False, True, False, False, False, False, False],
    "uneven": [True, False, False, True, True, True, False, True],
    "nowhere": [False] * 8,
}


def job_mean(rank: int) -> Any:
    answers = {}
    for name, mask in MASKS.items():
        rows = numbers(8)[UNEVEN[rank]].clone().requires_grad_()
        value = distributed.mean(rows.square(), torch.tensor(mask)[UNEVEN[rank]])
        value.backward()
        answers[name] = value.detach(), rows.grad
    return answers


def job_mean_of_broken_rows(rank: int) -> Any:
    rows = torch.tensor([1.0, float("nan")], requires_grad=True)
    value = distributed.mean(rows * 2, torch.tensor([True, False]))
    value.backward()
    return value.detach(), rows.grad


def job_gather_kept(rank: int) -> Any:
    kept = {"keys": mine(numbers(6, 3), rank), "index": torch.arange(6).chunk(RANKS)[rank]}
    whole = distributed.gather_kept(kept)
    return whole, any(rows.requires_grad for rows in whole.values())


def job_average(rank: int) -> Any:
    tensors = [numbers(3, 2, seed=rank), numbers(4, seed=rank + 10).double(), torch.tensor(float(rank))]
    distributed.average(tensors)
    return tensors


def job_objects(rank: int) -> Any:
    mine = {"rank": rank, "videos": ["a", "b"][: rank + 1]}
    return distributed.broadcast(mine), distributed.gather_objects(mine)


def job_any_rank(rank: int) -> Any:
    return [distributed.any_rank(flag) for flag in (False, rank == 0, rank == 1, True)]


def normalise(norm: nn.Module, rows: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics after one step of a loss that is a sum over rows."""
    rows = rows.clone().requires_grad_()
    output = norm(rows)
    (output.tanh() * targets).sum().backward()
    return {
        "output": output.detach(),
        "rows": rows.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **{name: buffer.clone() for name, buffer in norm.named_buffers()},
    }


SHAPES = {"vectors": (8, 5), "clips": (8, 3, 2, 4, 4)}


def plain_norm(name: str, momentum: float | None = 0.1) -> nn.Module:
    """A batch normalisation in training mode whose scale and shift are not the trivial ones."""
    channels = SHAPES[name][1]
    norm = (nn.BatchNorm1d if name == "vectors" else nn.BatchNorm3d)(channels, momentum=momentum)
    norm.weight.data.copy_(numbers(channels, seed=3))
    norm.bias.data.copy_(numbers(channels, seed=4))
    return norm


def one_rank(name: str, momentum: float | None = 0.1) -> dict[str, Tensor]:
    shape = SHAPES[name]
    return normalise(plain_norm(name, momentum), numbers(*shape, seed=1, scale=3, shift=20), numbers(*shape, seed=2))


def job_batch_norm(rank: int) -> Any:
    answers = {}
    for name, shape in SHAPES.items():
        for momentum in (0.1, None):
            norm = synchronise(nn.Sequential(plain_norm(name, momentum)))[0]
            rows, targets = numbers(*shape, seed=1, scale=3, shift=20), numbers(*shape, seed=2)
            answers[name, momentum] = normalise(norm, rows[UNEVEN[rank]], targets[UNEVEN[rank]])
    return answers


def job_batch_norm_modes(rank: int) -> Any:
    norm = SyncBatchNorm(5)
    rows = numbers(8, 5, seed=1, shift=2)[UNEVEN[rank]]
    with still([norm]):
        resting = norm(rows)
    untouched = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    half = norm(rows.bfloat16())
    return resting.detach(), untouched, half.detach(), norm.eval()(rows).detach(), norm.running_mean.clone()


JOBS: dict[str, Job] = {name[4:]: job for name, job in list(globals().items()) if name.startswith("job_")}


@pytest.fixture(scope="module")
def ranks() -> Callable[[str], list[Any]]:
    """ranks(job) is what each rank answered."""
    return lambda job: on_ranks(RANKS, answer, job=job)


def answer(job: str) -> Any:
    """Do a job as one of the ranks."""
    return JOBS[job](distributed.rank())


# Exchanges ------------------------------------------------------------------------------------------------------------


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_one_process_is_rank_zero_of_one():
    rows = numbers(3, 2)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather(rows) is rows
    assert distributed.broadcast("value") == "value" and distributed.gather_objects("value") == ["value"]
    assert distributed.any_rank(True) and not distributed.any_rank(False)


def test_every_process_knows_its_rank(ranks):
    assert ranks("identity") == [(0, 2), (1, 2)]


def test_gather_gives_the_rows_of_all_ranks_in_order_and_their_whole_gradient(ranks):
    rows = numbers(6, 4).requires_grad_()
    loss = contrast(rows, rows)
    loss.backward()
    answers = ranks("gather")
    for everyone, _, _ in answers:
        assert torch.equal(everyone, rows.detach())
    close(torch.stack([answer[1] for answer in answers]).mean(), loss.detach())
    close(
        torch.cat([answer[2] for answer in answers]) / RANKS, rows.grad
    )  # the average over ranks, as training takes it


def test_gather_takes_rows_that_are_not_contiguous(ranks):
    for everyone in ranks("gather_strided"):
        assert torch.equal(everyone, numbers(4, 6).T)


@pytest.mark.parametrize("name", MASKS)
def test_mean_is_the_mean_over_all_ranks(ranks, name):
    rows, mask = numbers(8).requires_grad_(), torch.tensor(MASKS[name])
    wanted = distributed.mean(rows.square(), mask)
    wanted.backward()
    close(wanted.detach(), rows.detach()[mask].square().mean() if mask.any() else torch.tensor(0.0))
    answers = [answer[name] for answer in ranks("mean")]
    close(torch.stack([value for value, _ in answers]).mean(), wanted.detach())
    close(torch.cat([gradient for _, gradient in answers]) / RANKS, rows.grad)


def test_mean_keeps_what_is_masked_out_of_value_and_gradient(ranks):
    for value, gradient in ranks("mean_of_broken_rows"):
        assert value.item() == 2 and gradient.tolist() == [2, 0]


def test_kept_rows_are_whole_and_detached(ranks):
    for whole, attached in ranks("gather_kept"):
        assert not attached
        assert torch.equal(whole["keys"], numbers(6, 3)) and torch.equal(whole["index"], torch.arange(6))


def test_average_is_alike_on_all_ranks(ranks):
    wanted = [(numbers(3, 2) + numbers(3, 2, seed=1)) / 2, (numbers(4, seed=10) + numbers(4, seed=11)).double() / 2]
    for tensors in ranks("average"):
        close(tensors[0], wanted[0])
        close(tensors[1], wanted[1])
        assert tensors[2].item() == 0.5


def test_objects_travel(ranks):
    both = [{"rank": 0, "videos": ["a"]}, {"rank": 1, "videos": ["a", "b"]}]
    assert ranks("objects") == [(both[0], both)] * RANKS


def test_one_rank_speaks_for_all(ranks):
    assert ranks("any_rank") == [[False, True, True, True]] * RANKS


# Batch normalisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", SHAPES)
def test_batch_norm_over_uneven_ranks_is_that_of_the_joined_batch(ranks, name, momentum):
    wanted = one_rank(name, momentum)
    answers = [answer[name, momentum] for answer in ranks("batch_norm")]
    for key in ("output", "rows"):
        close(torch.cat([answer[key] for answer in answers]), wanted[key], 1e-4)
    for key in ("weight", "bias"):
        close(sum(answer[key] for answer in answers), wanted[key], 1e-4)
    for answer in answers:
        close(answer["running_mean"], wanted["running_mean"])
        close(answer["running_var"], wanted["running_var"], 1e-4)
        assert answer["num_batches_tracked"] == wanted["num_batches_tracked"] == 1


def test_batch_norm_over_ranks_rests_and_evaluates(ranks):
    norm = nn.BatchNorm1d(5)
    rows = numbers(8, 5, seed=1, shift=2)
    wanted = norm(rows).detach()
    norm.eval()
    answers = ranks("batch_norm_modes")
    close(torch.cat([answer[0] for answer in answers]), wanted)
    close(torch.cat([answer[2] for answer in answers]).float(), wanted, 3e-2)
    close(torch.cat([answer[3] for answer in answers]), norm(rows).detach(), 1e-2)  # its statistics saw bfloat16 rows
    for _, untouched, half, _, running_mean in answers:
        assert half.dtype == torch.bfloat16
        assert not untouched["running_mean"].any() and untouched["num_batches_tracked"] == 0
        assert torch.equal(running_mean, answers[0][4])


def test_on_one_rank_it_is_plain_batch_normalisation():
    for name, shape in SHAPES.items():
        norm = synchronise(nn.Sequential(plain_norm(name)))[0]
        assert isinstance(norm, SyncBatchNorm)
        found = normalise(norm, numbers(*shape, seed=1, scale=3, shift=20), numbers(*shape, seed=2))
        for key, wanted in one_rank(name).items():
            assert torch.equal(found[key], wanted), key


def test_synchronise_keeps_weights_statistics_names_and_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.BatchNorm1d(4, affine=False))
    net[1][0](numbers(6, 4))
    net[2].eval()
    before = {name: (value.data_ptr(), value.clone()) for name, value in net.state_dict().items()}
    parameters = list(net.parameters())
    assert synchronise(net) is net
    assert isinstance(net[1][0], SyncBatchNorm) and isinstance(net[2], SyncBatchNorm)
    assert net[1][0].training and not net[2].training
    assert [id(parameter) for parameter in net.parameters()] == [id(parameter) for parameter in parameters]
    for name, value in net.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
    assert synchronise(net)[2] is net[2]


def test_still_uses_the_batch_and_remembers_nothing():
    norm, rows = nn.BatchNorm1d(3), numbers(6, 3, shift=5)
    with still([norm]):
        output = norm(rows)
    close(output.mean(dim=0).detach(), torch.zeros(3))
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    norm(rows)
    assert norm.running_mean.all() and norm.num_batches_tracked == 1


def test_still_lets_go_after_an_error_and_leaves_those_at_rest():
    moving, resting = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    resting.track_running_stats = False
    with pytest.raises(RuntimeError), still([moving, resting]):
        assert not moving.track_running_stats
        raise RuntimeError
    assert moving.track_running_stats and not resting.track_running_stats
