"""Where lists of videos come from: a source is a function from a root and options to splits, offered under a name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from iopath.common.file_io import g_pathmgr

from vssl_core.data.folders import entries, folder_source, is_video
from vssl_core.data.lists import csv_source, first_line, list_source
from vssl_core.data.official import hmdb51_source, kinetics_source, ucf101_source
from vssl_core.data.splits import refuse_leaks
from vssl_core.data.videos import SourceOptions, Splits, Videos, absolute
from vssl_core.errors import DataError, did_you_mean

__all__ = ["SourceOptions", "Splits", "Videos", "builtin_sources", "guess_source", "open_source", "place", "source_of"]

Source = Callable[[str | None, SourceOptions], Splits]


def builtin_sources() -> Mapping[str, Source]:
    """The sources that come with vssl, by name."""
    return {
        "folder": folder_source,
        "csv": csv_source,
        "list": list_source,
        "ucf101": ucf101_source,
        "hmdb51": hmdb51_source,
        "kinetics": kinetics_source,
        "demo": _demo_source,
    }


def _demo_source(root: str | None, options: SourceOptions) -> Splits:
    from vssl_core.data.demo import demo_source  # the video library loads only where videos are written

    return demo_source(root, options)


def source_of(name: str, offered: Mapping[str, Source]) -> Source:
    """The source of this name; a DataError names those that there are."""
    if name not in offered:
        known = ", ".join(sorted(offered))
        raise DataError(f"data.source: no source is named '{name}' (there are {known}){did_you_mean(name, offered)}")
    return offered[name]


def open_source(name: str, root: str | None, options: SourceOptions, offered: Mapping[str, Source]) -> Splits:
    """The lists that the source of this name gives; a DataError says what is wrong with the name, root or files."""
    splits = source_of(name, offered)(root, options)
    if not isinstance(splits, Splits):
        raise DataError(f"data source '{name}': must return Splits, returned {type(splits).__name__}")
    if not len(splits.train):
        raise DataError(f"data source '{name}': no video for training in {root}")
    refuse_leaks(splits)
    return splits


def place(text: str) -> tuple[str, str | None]:
    """(source, root) of a --data argument: SOURCE, SOURCE:ROOT, or a plain path whose kind is found out.

    Raises `DataError` for an empty text, such as a variable of the shell that is not set, and for a path that is not
    there.
    """
    if not text.strip():
        raise DataError("--data: is empty; give SOURCE, SOURCE:ROOT or a path")
    source, colon, root = text.partition(":")
    if source in builtin_sources() or (colon and not os.path.exists(text)):
        return source, root or None
    if not os.path.exists(text) and not any(mark in text for mark in "/."):
        return text, None
    return guess_source(text), text


def guess_source(path: str) -> str:
    """The source that reads this plain path: a file list, a known layout, or a folder of videos."""
    path = absolute(os.path.expanduser(path))
    if g_pathmgr.isdir(path):
        return _guess_folder(path)
    if not g_pathmgr.isfile(path):
        raise DataError(f"{path}: no such file or folder; give a folder of videos, a list file, or SOURCE:ROOT")
    if is_video(path):
        raise DataError(f"{path}: is one video; give the folder it lies in or a file that lists videos")
    return "list" if is_video(first_line(path)) else "csv"


def _guess_folder(path: str) -> str:
    names = set(entries(path)[1])
    if "ucfTrainTestlist" in names:
        return "ucf101"
    if "testTrainMulti_7030_splits" in names:
        return "hmdb51"
    return "csv" if g_pathmgr.isfile(f"{path}/train.csv") else "folder"
