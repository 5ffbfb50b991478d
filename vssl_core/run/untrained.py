"""A run without a step: the net as the seed draws it, in a folder that every evaluation can read."""

from __future__ import annotations

from pathlib import Path

from vssl_core.config import RunConfig, to_tree, to_yaml
from vssl_core.nets.backbones import fingerprint
from vssl_core.plugins import load
from vssl_core.run.build import make_backbone
from vssl_core.run.files import write_atomically
from vssl_core.run.folder import CONFIG
from vssl_core.run.weights import save_backbone


def save_untrained(config: RunConfig, folder: Path) -> None:
    """Write the configuration and the weights that a run with it would start from: those of `--baseline random`.

    The card is written last, with 0 epochs and 0 steps. Raises `CheckpointError` where a file cannot be written.
    """
    manager, _ = load(list(config.plugins))
    backbone = make_backbone(config, manager)
    write_atomically(folder / CONFIG, to_yaml(to_tree(config)).encode())
    card = {
        **fingerprint(backbone, config.clip.frames, config.clip.size),
        "options": dict(config.backbone.options),
        "normalisation": config.clip.normalisation,
        "epochs": 0,
        "steps": 0,
        "seed": config.seed,
        "plugins": list(config.plugins),
    }
    save_backbone(folder, backbone, card)
