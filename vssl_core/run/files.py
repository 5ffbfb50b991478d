"""Files that are whole or not there: written beside their place, then moved onto it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from vssl_core.errors import CheckpointError


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a whole file or leave the old one; `CheckpointError` says why it could not be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        beside_is_left(beside)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); what was there before is untouched: free space or choose another --run, and start again"
        ) from error


def beside_is_left(path: Path) -> None:
    """Remove a half-written file, where there is one."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself is gone or not a folder
        pass


def write_json(path: Path, value: Any) -> None:
    """A JSON file, keys in their order; NaN is refused."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
