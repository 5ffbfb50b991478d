"""`vssl data`: check, list, generate and prepare data sets, compute flow ahead, look at labels."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from vssl_core.data.sources import SourceOptions, Splits, builtin_sources, open_source, place
from vssl_core.errors import DataError


def run(options: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    match options.what:
        case "check":
            from vssl_core.data.check import run_check

            return run_check(files(options.place, every_file=True), options.out, options.workers, options.seconds)
        case "list":
            return _list(options.place)
        case "demo":
            from vssl_core.data.demo import default_folder, make_demo

            folder = Path(options.folder) if options.folder else default_folder()
            print(f"{folder}: {'written' if make_demo(folder) else 'is there'}")
            return 0
        case "prepare":
            from vssl_core.data.prepare import run_prepare

            root, paths = _below(options.place)
            return run_prepare(paths, root, options.out, options.workers)
        case "flow":
            from vssl_core.data.flow_ahead import run_flow
            from vssl_core.data.flow_store import Settings

            root, paths = _below(options.place)
            settings = Settings(options.method, options.stride, options.blocks)
            return run_flow(paths, root, options.out, settings, options.workers)
        case "labels":
            from vssl_core.commands.labels import labels

            return labels(
                options.plugin, options.place, options.out, options.overrides, options.videos, options.against
            )
    raise AssertionError(options.what)


def files(text: str, every_file: bool = False) -> list[str]:
    """The files of a plain path (all below it) or of SOURCE:ROOT (those it lists).

    Raises `DataError` where there are none.
    """
    if os.path.exists(text):
        found = [text] if os.path.isfile(text) else sorted(_walk(text))
        if not found:
            raise DataError(f"{text}: holds no files; give a folder with videos")
        return found
    splits = _open(text)
    return [
        videos.path(index)
        for videos in (splits.train, splits.test)
        if videos is not None
        for index in range(len(videos))
    ]


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def _below(text: str) -> tuple[str, list[str]]:
    """A root folder and the videos to copy, relative paths kept below it."""
    from vssl_core.data.folders import is_video

    paths = [path for path in files(text) if is_video(path)] if os.path.isdir(text) else files(text)
    if not paths:
        raise DataError(f"{text}: holds no videos")
    return (text if os.path.isdir(text) else os.path.commonpath([os.path.dirname(path) for path in paths])), paths


def _open(text: str) -> Splits:
    source, root = place(text)
    if root is None and source not in builtin_sources():
        raise DataError(f"{text}: no such file or folder, and no source of this name; give a path or SOURCE:ROOT")
    return open_source(source, root, SourceOptions(), builtin_sources())


def _list(text: str) -> int:
    splits = _open(text)
    print(
        f"{splits.name}: {len(splits.train)} training videos, {len(splits.test) if splits.test else 0} test "
        f"videos, {len(splits.train.classes)} classes"
    )
    for note in splits.notes:
        print(f"note: {note}")
    for number, name in enumerate(splits.train.classes):
        counts = [int((videos.labels == number).sum()) if videos else 0 for videos in (splits.train, splits.test)]
        print(f"  {name}: {counts[0]} training, {counts[1]} test")
    return 0
