"""All that a run is at one moment, in one file of tensors and plain values; loading it executes nothing."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vssl_core.distributed import rank, world_size
from vssl_core.errors import CheckpointError
from vssl_core.run.files import write_atomically

FORMAT = 1
KEYS = {"config", "videos", "step", "epoch", "position", "order", "ensemble", "optimizer", "scaler", "generators"}
NAME = "checkpoint.pt"
ELSE = "delete it, or put one of checkpoints/ in its place"  # what to do about a run's checkpoint
CUT = "it is cut short, or another kind of file"
START = "give a run folder, a checkpoint or a safetensors file"  # what `init` takes


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole, or leave the one that is there."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, instead: str = ELSE) -> dict[str, Any]:
    """A checkpoint's values; `CheckpointError` for a file that is cut short, foreign or of another format.

    `instead` is what to do then.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a foreign file is told below, in one sentence
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except UnpicklingError as error:
        what = "holds something else than tensors and plain values, perhaps code, and was not loaded"
        raise CheckpointError(f"{path}: {what}; {instead}") from error
    except Exception as error:  # a cut file, a text file, a folder: torch raises half a dozen kinds
        why = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{path}: is not a whole checkpoint ({why or CUT}); {instead}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not KEYS <= set(state):
        raise CheckpointError(f"{path}: is not a checkpoint of this version of vssl (format {FORMAT}); {instead}")
    return state


def restore_module(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    instead: str = "use the configuration it was made with, or another --run",
) -> None:
    """Load a module's whole state; one sentence where names or shapes differ, `instead` being what to do then."""
    found = _differences(module.state_dict(), state)
    if found:
        raise CheckpointError(f"{where}: holds another architecture ({_told(found)}); {instead}")
    module.load_state_dict(dict(state))


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Where a state does not fit: shapes first, then what is missing, then what is too much."""
    shapes = [
        f"{name} is {tuple(state[name].shape)}, {tuple(value.shape)} is needed"
        for name, value in own.items()
        if name in state and value.shape != state[name].shape
    ]
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    return [*shapes, *(f"{name} is missing" for name in missing), *(f"{name} is not needed" for name in extra)]


def _told(differences: Sequence[str]) -> str:
    return f"{differences[0]}, {len(differences)} difference{'s' * (len(differences) > 1)}"


def generators() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, extra = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(words), extra],
    }


def restore_generators(state: Mapping[str, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, extra = state["python"]
    random.setstate((version, tuple(words), extra))


def tell_ranks(state: Mapping[str, Any], where: str, synchronised: bool) -> None:
    """Say once that a run goes on with another number of ranks, and what that may change."""
    before, now = state.get("ranks", world_size()), world_size()
    if before == now or rank() != 0:
        return
    same = "samples keep their order and looks"
    apart = f"{same}, but each rank's batch norm sees another share of them: device.sync_batch_norm is off"
    print(f"{where}: made on {before} ranks, goes on with {now}; {same if synchronised else apart}")


def start_from(modules: nn.Module, path: Path) -> tuple[list[str], list[str]]:
    """Load by name what fits from a checkpoint, a run folder or a weights file.

    The names that were missing, and that were left over.
    """
    state = _weights_of(path)
    own = modules.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(name.startswith("backbone.") for name in fitting):
        needed = {name: value for name, value in own.items() if name.startswith("backbone.")}
        given = {name: value for name, value in state.items() if name.startswith("backbone.")}
        what = f"holds nothing that fits this backbone ({_told(_differences(needed, given))})"
        raise CheckpointError(f"init: {path}: {what}; choose weights of the same backbone")
    modules.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting)), sorted(set(state) - set(fitting))


def _weights_of(path: Path) -> dict[str, Tensor]:
    from vssl_core.run.weights import WEIGHTS, read_weights

    file = path
    if path.is_dir():
        file = next((path / name for name in (NAME, WEIGHTS) if (path / name).exists()), path)
    if not file.is_file():
        what = "holds no run that has saved" if path.is_dir() else "there is no such file or folder"
        raise CheckpointError(f"init: {path}: {what}; {START}")
    try:
        if file.suffix == ".safetensors":
            return {f"backbone.{name}": value for name, value in read_weights(file, START).items()}
        return load(file, START)["ensemble"]
    except CheckpointError as error:
        raise CheckpointError(f"init: {error}") from error


def start_backbone(backbone: nn.Module, init: Path | None) -> None:
    """Load the backbone of `init` before teachers are copied from it."""
    if init:
        start_from(nn.ModuleDict({"backbone": backbone}), init)


def start_all(ensemble: nn.Module, init: Path | None) -> None:
    """Load all of `init` that fits by name, and say what does not."""
    if init:
        missing, extra = start_from(ensemble, init)
        if rank() == 0:
            told = f"{len(missing)} names start afresh{_first(missing)}, {len(extra)} are not used{_first(extra)}"
            print(f"init: {init}: {told}")


def _first(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
