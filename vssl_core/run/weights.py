"""Backbone weights on their own: `backbone.safetensors` holds the weights alone, `backbone.json` what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vssl_core.errors import CheckpointError
from vssl_core.run.checkpoint import CUT, restore_module
from vssl_core.run.files import write_atomically, write_json

WEIGHTS, CARD = "backbone.safetensors", "backbone.json"


def save_backbone(folder: Path, backbone: nn.Module, card: dict[str, Any]) -> None:
    """Write weights and card; equal weights give equal bytes."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(backbone.state_dict().items())}
    write_atomically(folder / WEIGHTS, save(tensors))
    write_json(folder / CARD, card)


def read_card(folder: Path) -> dict[str, Any]:
    """What a run folder's backbone is; `CheckpointError` where there is none."""
    try:
        return json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CARD}: cannot be read ({error}); give the folder of a run that has trained"
        ) from error


def read_weights(path: Path, instead: str = "put a whole one in its place") -> dict[str, Tensor]:
    """The tensors of a safetensors file, which cannot hold code; `instead` is what to do where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file; {instead}") from None
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{path}: is not a whole safetensors file ({why or CUT}); {instead}") from error


def load_backbone(folder: str | Path) -> nn.Module:
    """The trained backbone of a run folder, in eval mode: `features = load_backbone(DIR)(clip)` gives
    {stage: (B,C,T,H,W)}.

    `backbone.card` tells the normalisation its input needs. Raises `CheckpointError`.
    """
    from vssl_core.nets.backbones import build_backbone

    folder = Path(folder)
    card = read_card(folder)
    backbone = build_backbone(card["name"], **card.get("options", {}))
    instead = f"{CARD} says that it is a {card['name']}: take both from one run"
    restore_module(backbone, read_weights(folder / WEIGHTS), str(folder / WEIGHTS), instead)
    backbone.card = card
    return backbone.eval()
