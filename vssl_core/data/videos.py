"""The list of videos as every worker holds it: a few arrays, so that millions of rows cost little and fork for free."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

NO_LABEL = -1


@dataclass(frozen=True)
class SourceOptions:
    """What a source may be told besides its root; each source reads what concerns it."""

    split: int = 1
    test_fraction: float = 0.25
    group: str | None = None
    cache: str | None = None


class Videos:
    """A read-only list of videos: relative paths in one byte array, a class a row or -1, and the folder they lie in.

    Nothing in it is a python object per row, so forked workers share its pages and a pickle is one copy of the arrays.
    """

    def __init__(
        self, text: np.ndarray, ends: np.ndarray, labels: np.ndarray, classes: Sequence[str] = (), root: str = ""
    ) -> None:
        self.root = root
        self.classes = tuple(classes)
        self.labels = np.array(labels, dtype=np.int32)  # (N,)
        self._text = text  # (bytes of all paths,) uint8
        self._ends = ends.astype(np.uint32 if len(text) < 2**32 else np.int64)  # (N,) where each path ends in the text
        for values in (self.labels, self._text, self._ends):
            values.flags.writeable = False

    @staticmethod
    def build(paths: Iterable[str], labels: Iterable[int] | None, classes: Sequence[str], root: str) -> Videos:
        """The list of these paths (relative to `root`, or absolute), in this order; `labels` None means unlabelled."""
        rows = Rows(root)
        for path in paths:
            rows.add(path)
        if labels is not None:
            rows.labels.extend(labels)
        return rows.videos(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Videos({len(self)} videos, {len(self.classes)} classes, root={self.root!r})"

    @property
    def labelled(self) -> bool:
        """Whether any row carries a class."""
        return bool(self.classes)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays hold."""
        return self._text.nbytes + self._ends.nbytes + self.labels.nbytes

    def relative(self, index: int) -> str:
        """The path below the root, as hashes and messages use it (absolute for a row that lies elsewhere)."""
        return self._bytes(range(len(self))[index]).decode("utf-8", "surrogateescape")

    def path(self, index: int) -> str:
        """The path to open."""
        relative = self.relative(index)
        return relative if _is_absolute(relative) or not self.root else f"{self.root.rstrip('/')}/{relative}"

    def keys(self) -> Iterator[bytes]:
        """The relative paths in order, as bytes, one at a time."""
        start, text = 0, self._text.tobytes()
        for end in self._ends.tolist() if len(self) < 100_000 else map(int, self._ends):
            yield text[start:end]
            start = end

    def digest(self) -> str:
        """The hash of relative paths and labels in order: equal wherever the same list lies."""
        sums = sha256(len(self).to_bytes(8, "little"))
        sums.update(self._text.tobytes())
        sums.update(self._ends.astype("<u8").tobytes())
        sums.update(self.labels.astype("<i4").tobytes())
        return sums.hexdigest()

    def select(self, indices: np.ndarray) -> Videos:
        """The list of these rows only, in the given order."""
        text, ends, whole = bytearray(), array("q"), self._text.data
        starts = np.concatenate([[0], self._ends[:-1]])[indices] if len(self) else indices
        for start, end in zip(map(int, starts), map(int, self._ends[indices]), strict=True):
            text += whole[start:end]
            ends.append(len(text))
        return Videos(_frozen(text, np.uint8), _frozen(ends, np.int64), self.labels[indices], self.classes, self.root)

    def relabelled(self, labels: np.ndarray, classes: Sequence[str]) -> Videos:
        """The same rows with other labels and classes."""
        return Videos(self._text, self._ends, labels, classes, self.root)

    def moved(self, root: str) -> Videos:
        """The same rows below another folder."""
        return Videos(self._text, self._ends, self.labels, self.classes, root)

    def _bytes(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].tobytes()


class Rows:
    """A list of videos while it is read: grows by appending to flat buffers, so that a long one leaves no objects."""

    def __init__(self, root: str) -> None:
        self.root = absolute(root)
        self.labels = array("i")
        self._text = bytearray()
        self._ends = array("q")
        self._prefix = self.root.rstrip("/") + "/"
        self._shared: str | None = None  # what all paths begin with, while all are absolute

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, path: str) -> None:
        """Append one path, cut to its part below the root where it lies there."""
        if path.startswith(self._prefix):
            path = path[len(self._prefix) :]
        if self._shared != "" and not (self._shared and path.startswith(self._shared)):
            self._shrink_shared(path)
        self._text += path.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def videos(self, classes: Sequence[str] = ()) -> Videos:
        """The finished list; rows without any label get -1."""
        labels = np.array(self.labels, dtype=np.int32) if self.labels else np.full(len(self), NO_LABEL, np.int32)
        if len(labels) != len(self):
            raise ValueError(f"{len(self)} paths but {len(labels)} labels")
        self._move_root()
        return Videos(_frozen(self._text, np.uint8), _frozen(self._ends, np.int64), labels, classes, self.root)

    def _shrink_shared(self, path: str) -> None:
        if not _is_absolute(path):
            self._shared = ""
            return
        shared = os.path.dirname(path) + "/" if self._shared is None else os.path.commonprefix([self._shared, path])
        self._shared = shared[: shared.rfind("/") + 1]

    def _move_root(self) -> None:
        """Take the folder that all absolute paths share as the root: the hash then does not depend on where it lies."""
        if not self._shared or len(self._shared.rstrip("/")) == 0 or self._shared.endswith("://"):
            return
        cut = len(self._shared.encode("utf-8", "surrogateescape"))
        text, start = bytearray(), 0
        for index, end in enumerate(self._ends):
            text += self._text[start + cut : end]
            self._ends[index] = len(text)
            start = end
        self.root, self._text = self._shared.rstrip("/"), text


@dataclass(frozen=True)
class Splits:
    """The two sides of a data set, its name as results quote it, and what you should know about it."""

    train: Videos
    test: Videos | None
    name: str
    notes: tuple[str, ...] = ()


def absolute(path: str) -> str:
    """The path independent of the working folder; addresses such as s3://bucket stay as they are."""
    return path if "://" in path else os.path.abspath(path)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or "://" in path


def _frozen(values: bytearray | array, dtype: type) -> np.ndarray:
    return np.array(np.frombuffer(values, dtype=dtype))
