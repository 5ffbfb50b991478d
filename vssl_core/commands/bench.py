"""`vssl bench`: measure the ratios that the documentation promises, each with its bar."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vssl_core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vssl_core.bench.files import Files
    from vssl_core.bench.rows import Row

    Measure = Callable[[Files, float], Row]

ROOMS = {
    "data_path": (
        "frames_exact",
        "data_path_vs_pytorchvideo",
        "data_path_vs_pytorchvideo_h264",
        "data_path_vs_decode_all",
        "data_path_vs_vjepa2_order",
        "data_path_vs_floor",
        "shared_decode_4_clips",
    ),
    "steps": (
        "joint_vs_singles",
        "statistics_labels_share",
        "conflict_share",
        "engine_overhead",
        "engine_microseconds",
    ),
    "extraction": ("extraction_vs_loop",),
    "pieces": ("ema_vs_flat", "ema_vs_loop", "optimizer_vs_fused", "jitter_vs_torchvision"),
    "growth": ("memory_slope_mib", "growth_10x"),
}
NAMES = tuple(name for names in ROOMS.values() for name in names)


def bench(names: Sequence[str], clips: str | None, json: bool, share: float = 1.0) -> int:
    """Measure the rows of these names, all where none is given; 0 where every measured row meets its bar, else 1.

    `share` of the usual repetitions are made. Raises `UserError` for an unknown name, `DataError` for a useless folder.
    """
    for name in names:
        if name not in NAMES:
            advice = did_you_mean(name, NAMES) or f"; there are {', '.join(NAMES)}"
            raise UserError(f"no row is named '{name}'{advice}")
    from vssl_core.bench.files import Files

    rows = []
    with Files(clips or os.environ.get("VSSL_CLIPS")) as files:
        for name in dict.fromkeys(names) or NAMES:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            rows.append(measure_of(name)(files, share))
    if json:
        print(json_format.dumps([row.describe() for row in rows], indent=2))
    else:
        _print(rows)
    return int(any(row.met is False for row in rows))


def measure_of(name: str) -> Measure:
    """The function that measures a row."""
    from importlib import import_module

    room = next(room for room, names in ROOMS.items() if name in names)
    return getattr(import_module(f"vssl_core.bench.{room}"), name)


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from vssl_core.bench.rows import versions

    console = Console()
    table = Table("row", "this", "other", "value [range]", "A/A [range]", "bar", "met")
    for row in rows:
        met = {True: "yes", False: "NO", None: "-"}[row.met]
        value, again = (str(spread) if spread else "-" for spread in (row.value, row.again))
        table.add_row(row.name, row.ours or "-", row.other or "-", value, again, str(row.bar), met)
    console.print(table)
    for row in rows:
        note = f"; {row.note}" if row.note else ""
        console.print(f"{row.name}: {row.case} (n={row.repeats}){note}", highlight=False, soft_wrap=True)
    measured = sorted({file for row in rows for file in row.files})
    console.print(
        f"files: {', '.join(measured[:30])}{f' and {len(measured) - 30} more' if len(measured) > 30 else ''}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        "versions: " + ", ".join(f"{name} {value}" for name, value in versions().items()),
        highlight=False,
        soft_wrap=True,
    )
