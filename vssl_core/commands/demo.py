"""`vssl demo`.

Generate videos, train four plugins on them, evaluate against random initialisation, say where everything lies.
"""

from __future__ import annotations

from collections.abc import Sequence

from vssl_core.commands.evaluate import evaluate
from vssl_core.commands.train import train

PLUGINS = "stor,pace,rotation,byol"


def demo(run: str, overrides: Sequence[str]) -> int:
    """Train and evaluate in one go; the exit code."""
    code = train(PLUGINS, None, "demo", run, overrides)
    code = code or evaluate(run, "retrieval,linear", "random", None, [])
    print(
        f"everything of this run lies in {run}: config.yaml, plan.json, metrics.jsonl, backbone.safetensors, "
        f"evaluations/; `tensorboard --logdir {run}` draws the losses"
    )
    return code
