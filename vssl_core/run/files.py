"""Files that are whole or not there: written beside their place, then moved onto it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vssl_core.errors import CheckpointError

LAST_BYTES = 2**17  # of a log, in which its last line is looked for


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failure to write into one sentence: `CheckpointError` with the place and the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); what was there before is untouched: "
            "free space or choose another --run, and start again"
        ) from error


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a whole file or leave the old one; `CheckpointError` says why it could not be written."""
    beside = _beside(path)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    except BaseException:
        _remove(beside)
        raise


def copy_atomically(source: Path, path: Path) -> None:
    """The same content under a second name; takes no further space where the file system knows links."""
    beside = _beside(path)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, beside)  # files are replaced, never changed, so both names keep what they hold
            except OSError:
                shutil.copyfile(source, beside)
            os.replace(beside, path)
    except BaseException:
        _remove(beside)
        raise


def is_leftover(path: Path) -> bool:
    """Whether a file is one that was being written when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself is gone or not a folder
        pass


def write_json(path: Path, value: Any) -> None:
    """A JSON file, keys in their order; NaN is refused."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is not there yet, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def last_json_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log of JSON objects that may be growing; None where there is none yet."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - LAST_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # cut short
            continue
        if isinstance(found, dict):
            return found
    return None


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as a CSV file has them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """A CSV file of columns of one length."""
    write_atomically(path, csv_text([columns, *zip(*columns.values(), strict=True)]).encode())
