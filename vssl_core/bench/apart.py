"""Two sides of a row, each in a process of its own, as its users would run it.

They take turns, never at the same time.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from vssl_core.bench.rows import Side, Times, paired, seconds_of
from vssl_core.errors import VsslError


@dataclass(frozen=True)
class Maker:
    """How a process makes its side: a function of a module, and what to call it with."""

    build: Callable[..., Side]
    arguments: Sequence[Any]
    keeps_pages: bool  # whether it sets the allocator as a run of vssl does; other loaders leave it as it is


def paired_apart(ours: Maker, other: Maker, repeats: int, warm: bool = True) -> Times:
    """`paired`, with each side in a process of its own, on that process's CPU clock."""
    with ExitStack() as stack:
        sides = [stack.enter_context(_Process(maker)) for maker in (ours, other)]
        return paired(sides[0], sides[1], repeats, warm, clock=_asked)


def _asked(side: Side, number: int) -> float:
    return side(number)  # a process measures itself


class _Process:
    """A side that lives elsewhere; calling it gives the seconds of CPU that it took there."""

    def __init__(self, maker: Maker) -> None:
        context = multiprocessing.get_context("spawn")  # nothing is inherited: neither settings nor memory
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, maker), daemon=True)
        self._process.start()
        far_end.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()

    def __call__(self, number: int) -> float:
        self._pipe.send(number)
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise VsslError("bench: the process of one side ended before it was asked to") from None
        if isinstance(answer, str):
            raise VsslError(f"bench: one side failed: {answer}")
        return answer


def _serve(pipe: Connection, maker: Maker) -> None:
    """Make the side, and run it whenever asked, until the other end hangs up."""
    import torch

    from vssl_core.run.memory import keep_pages

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process hears it, and hangs up
    torch.set_num_threads(1)
    if maker.keeps_pages:
        keep_pages()
    try:
        side = maker.build(*maker.arguments)
        while True:
            pipe.send(seconds_of(side, pipe.recv()))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
