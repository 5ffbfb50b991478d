"""`vssl demo`.

Generate videos, train four plugins on them, evaluate against random initialisation, say where everything lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vssl_core.commands.evaluate import evaluate
from vssl_core.commands.train import train
from vssl_core.config import read_yaml

SETTINGS = Path(__file__).with_name("demo.yaml")  # which plugins: a file can name them, the engine does not


def demo(run: str, overrides: Sequence[str]) -> int:
    """Train and evaluate in one go; the exit code."""
    words = read_yaml(str(SETTINGS))
    code = train(words["plugins"], None, words["data"], run, [*words["settings"], *overrides])
    code = code or evaluate(run, words["evaluations"], words["baseline"], None, [])
    print(
        f"everything of this run lies in {run}: config.yaml, plan.json, metrics.jsonl, backbone.safetensors, "
        f"evaluations/; `tensorboard --logdir {run}` draws the losses"
    )
    return code
