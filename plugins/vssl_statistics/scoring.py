"""The scoring pass of a curriculum: how easy each video of a run is, measured once and left in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vssl_core import (
    Appearance,
    Boxes,
    Centre,
    DataError,
    Fixed,
    Flips,
    Flow,
    Measure,
    Request,
    Turns,
    broadcast,
    rank,
)
from vssl_statistics.curriculum import UNKNOWN
from vssl_statistics.measures import Score

if TYPE_CHECKING:
    from vssl_core import Run

CACHE = "curriculum.jsonl"


def score_request(flow: Flow) -> Request:
    """The clip that a video is scored by: the one it is trained with, its central square, as filmed."""
    return Request(
        placement=Fixed(),
        boxes=Boxes(Centre()),
        flips=Flips(0.0),
        turns=Turns((0,)),
        appearance=Appearance(colour="kept", per="clip"),
        measures=(Measure("score", Score(flow), flow.whole),),
    )


def scores_of(run: Run, flow: Flow, name: str) -> np.ndarray:
    """(N,) float32, the same on every rank: read from the run's folder, or measured and left there.

    Raises DataError where no video can be scored.
    """
    request, place = score_request(flow), run.folder / CACHE
    made_for = {
        "list": run.videos.digest(),
        "seed": run.config.seed,
        "clip": repr(run.config.clip),
        "request": repr(request),
    }
    scores = broadcast(read_scores(place, made_for, len(run.videos)) if rank() == 0 else None)
    if scores is not None:
        return scores
    if rank() == 0:
        print(f"{name}: measures once how easy {len(run.videos)} videos are, for the curriculum; see {place}")
    scores = _measured(run, request, name)
    if rank() == 0:
        names = [run.videos.relative(row) for row in range(len(run.videos))]
        write_scores(place, made_for, names, scores)
    return scores


def _measured(run: Run, request: Request, name: str) -> np.ndarray:
    found = run.extract(request, lambda batch: {"score": batch["clips"][0].measures["score"]})
    if not len(found["index"]):
        raise DataError(
            f"plugins.{name}: none of the {len(run.videos)} videos could be scored for the curriculum; run "
            "`vssl data check` on the source"
        )
    scores = np.full(len(run.videos), UNKNOWN, np.float32)
    scores[found["index"].numpy()] = found["score"].numpy()
    return scores


def write_scores(path: Path, made_for: Mapping[str, Any], names: list[str], scores: np.ndarray) -> None:
    """A line that says what the scores belong to, then one for each video; the whole file or none."""
    lines = [json.dumps({"made_for": made_for})]
    lines += [json.dumps({"video": name, "score": float(score)}) for name, score in zip(names, scores, strict=True)]
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_scores(path: Path, made_for: Mapping[str, Any], videos: int) -> np.ndarray | None:
    """(N,) the scores of a file, or None where there are none, or of something else."""
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        scores = [json.loads(line)["score"] for line in rest]
        fits = json.loads(first)["made_for"] == json.loads(json.dumps(made_for)) and len(scores) == videos
        return np.array(scores, np.float32) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
