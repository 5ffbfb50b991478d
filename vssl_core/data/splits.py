"""Cutting one list of videos into training and test, the same on every machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from vssl_core.data.videos import SourceOptions, Splits, Videos
from vssl_core.errors import DataError


def hold_out(videos: Videos, options: SourceOptions) -> tuple[Videos, Videos | None, str]:
    """Training rows, test rows (None for a fraction of 0) and the words that name the split."""
    if not 0 <= options.test_fraction < 1:
        raise DataError(f"data.test_fraction: must lie in [0, 1), got {options.test_fraction}")
    if options.test_fraction == 0:
        return videos, None, "no test split"
    share = f"{options.test_fraction:g} of each class held out"
    if options.group is not None:
        chosen, how = _by_group(videos, options.group, options.test_fraction), f"{share} by group '{options.group}'"
    else:
        chosen, how = _by_rank(videos, options.test_fraction), share
    return videos.select(np.flatnonzero(~chosen)), videos.select(np.flatnonzero(chosen)), how


def _by_rank(videos: Videos, fraction: float) -> np.ndarray:
    """Of each class the rows whose paths have the smallest hashes; a class with a single video stays in training."""
    ranks = np.fromiter(map(_hash, videos.keys()), np.uint64, len(videos))
    chosen = np.zeros(len(videos), bool)
    order = np.lexsort((ranks, videos.labels))
    for rows in np.split(order, np.flatnonzero(np.diff(videos.labels[order])) + 1):
        wanted = int(np.floor(fraction * len(rows) + 0.5))
        chosen[rows[: min(max(wanted, 1), len(rows) - 1)]] = True
    if not chosen.any():
        few = f"{len(videos)} videos of {len(np.unique(videos.labels))} classes"
        raise DataError(f"{videos.root}: {few} are too few to hold any out for testing; set data.test_fraction=0")
    return chosen


def _by_group(videos: Videos, pattern: str, fraction: float) -> np.ndarray:
    """Whole groups, taken in the order of their hashes as long as they bring every class nearer to its share."""
    groups = _groups(videos, pattern)
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"data.group: '{pattern}' finds a single group, '{names[0]}'; it must tell at least two apart")
    class_of = np.unique(videos.labels, return_inverse=True)[1]
    counts = np.zeros((len(names), class_of.max() + 1))
    np.add.at(counts, (group, class_of), 1)  # (groups, classes)
    missing = fraction * counts.sum(0)
    taken = np.zeros(len(names), bool)
    for index in sorted(
        range(len(names)), key=lambda index: _hash(str(names[index]).encode("utf-8", "surrogateescape"))
    ):
        after = missing - counts[index]
        if np.abs(after).sum() < np.abs(missing).sum() and taken.sum() < len(names) - 1:
            taken[index], missing = True, after
    if not taken.any():
        taken[np.argmin(counts.sum(1))] = True  # all groups are larger than twice the share: the smallest
    return taken[group]


def _groups(videos: Videos, pattern: str) -> np.ndarray:
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"data.group: '{pattern}' is not a regular expression ({error})") from None
    groups = []
    for index, key in enumerate(videos.keys()):
        match = search(key.rpartition(b"/")[2].decode("utf-8", "surrogateescape"))
        if match is None:
            raise DataError(f"data.group: '{pattern}' does not match the file name of {videos.relative(index)}")
        groups.append(match.group(1) if match.re.groups else match.group(0))
    if None in groups:
        where = videos.relative(groups.index(None))
        raise DataError(f"data.group: the first bracket of '{pattern}' matches nothing in {where}")
    return np.array(groups)


def refuse_leaks(splits: Splits) -> None:
    """Raise a DataError where one path stands on both sides."""
    if splits.test is None:
        return
    train, test = _fingerprints(splits.train), _fingerprints(splits.test)
    both = np.flatnonzero(np.isin(test, train))
    if len(both):
        first = splits.test.path(int(both[0]))
        count = f"{len(both)} videos are" if len(both) > 1 else "1 video is"
        raise DataError(f"{splits.name}: {count} on both sides, first {first}; list each for training or for testing")


def _fingerprints(videos: Videos) -> np.ndarray:
    """A 64-bit number for every path that is opened, good within this process."""
    root = videos.root.encode("utf-8", "surrogateescape") + b"/"
    whole = (key if key.startswith(b"/") or b"://" in key else root + key for key in videos.keys())
    return np.fromiter(map(hash, whole), np.int64, len(videos))


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def shorten(names: Iterable[str], most: int = 3) -> str:
    """The first few names, comma separated, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
