"""What the bank costs beside the net: `pytest -s plugins/vssl_saccades/tests/test_saccades_speed.py` prints it."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch
from torch.nn import functional as F

from vssl_core import Batch, ClipSettings, Context, Sample, build_backbone, gather, rank, world_size
from vssl_core.testing import on_ranks
from vssl_saccades.objective import Saccades

LIST, BATCH, CLIPS, FEATURES = 9537, 16, 10, 512  # UCF101, as published
SHOWN = 2  # clips that the net is timed with: its time grows with their number


def measured(options: dict[str, str]) -> dict[str, float]:
    """Seconds of a step of this rank, which has one core and its share of the batch: of the bank, and of R3D-10.

    Of three times the shortest counts, which other programs have disturbed least.
    """
    net, videos = build_backbone("r3d_10"), BATCH // world_size()
    context = Context("saccades", ClipSettings(16, 112, 1), net, FEATURES, {}, LIST, 360, 596, BATCH, 1)
    objective = Saccades(Saccades.Config(**options, reorganisation_weight=0, prediction_weight=0), context)
    whole = torch.arange(BATCH) * 500
    index = whole[rank() * videos : (rank() + 1) * videos]
    samples = [Sample(0, 0, 0, video) for video in index.tolist()]
    batch = Batch("saccades", {}, index, samples, epoch=0, progress=0.0, encode=lambda *given: None)
    vectors, fixations = torch.randn(videos, CLIPS, FEATURES).requires_grad_(), torch.arange(5)
    clips = torch.randn(SHOWN, 3, 16, 112, 112)

    def bank() -> None:
        rows = F.normalize(vectors, dim=2)
        loss, _ = objective._contrast(batch, rows, fixations.expand(videos, -1))
        loss.backward()
        moments = gather(rows.detach().unflatten(1, (2, -1)).mean(dim=1))
        objective.bank.update(
            objective._slots(whole, fixations.expand(BATCH, -1)).flatten(), moments.flatten(0, 1), 0.5
        )

    def step() -> None:
        *_, last = net(clips).values()
        last.mean().backward()

    seconds: dict[str, list[float]] = {"bank": [], "step": []}
    for _ in range(4):  # the first is a warm-up
        for name, side in (("bank", bank), ("step", step)):
            started = perf_counter()
            side()
            seconds[name].append(perf_counter() - started)
    found = {name: min(times[1:]) for name, times in seconds.items()}
    return {"bank": found["bank"], "step": found["step"] * videos * CLIPS / SHOWN}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "ranks"), [({}, 1), ({"bank_precision": "float16"}, 1), ({"bank": "sharded"}, 2)], ids=str
)
def test_bank_and_negatives_take_less_than_two_hundredths_of_a_step(options: dict[str, str], ranks: int) -> None:
    """Drawing 1024 negatives for each of 160 clips, reading and comparing them, gradients, and the update.

    A bank that is spread is measured where it is: on two ranks, with what travels between them.
    """
    for number, found in enumerate(on_ranks(ranks, measured, options=options)):
        ratio = found["bank"] / found["step"]
        told = f"bank {found['bank']:.3f} s, R3D-10 step {found['step']:.1f} s, ratio {ratio:.2%}"
        print(f"\n{options}, rank {number} of {ranks}: {told}")
        assert ratio < 0.02
