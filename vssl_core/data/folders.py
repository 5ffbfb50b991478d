"""Videos below a folder: walking it, and reading its sub folders as classes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from iopath.common.file_io import g_pathmgr

from vssl_core.data.splits import hold_out
from vssl_core.data.videos import SourceOptions, Splits, Videos, absolute
from vssl_core.errors import DataError

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .divx .mkv .webm .mpg .mpeg .m2v .mp2 .vob .ts .mts .m2ts .wmv .asf .flv .f4v .3gp .3g2 "
    ".ogv .ogg .rm .rmvb .mxf .dv .y4m .ivf .264 .h264 .265 .h265 .hevc .av1 .obu .mjpeg .mjpg .nut".split()
)
TEST_FOLDERS = ("test", "val", "validation", "valid")


def is_video(name: str) -> bool:
    """Whether the file's name ends as a video's does; nothing is opened."""
    dot = name.rfind(".")
    return dot > name.rfind("/") + 1 and name[dot:].lower() in VIDEO_SUFFIXES


def entries(folder: str) -> tuple[list[str], list[str]]:
    """Names of the videos and of the sub folders in a folder, sorted; hidden ones are left out."""
    try:
        names = sorted(name for name in g_pathmgr.ls(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from None
    videos = [name for name in names if is_video(name)]  # by name alone: asking the file system once per video is slow
    return videos, [name for name in names if not is_video(name) and g_pathmgr.isdir(f"{folder}/{name}")]


def walk(folder: str) -> Iterator[str]:
    """Paths of all videos below the folder, relative to it, in the same order everywhere; links in a circle end."""
    yield from _walk(folder.rstrip("/"), "", frozenset())


def _walk(folder: str, below: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder) if "://" not in folder else folder
    if real in above:
        return
    videos, folders = entries(folder)
    yield from (below + name for name in videos)
    for name in folders:
        yield from _walk(f"{folder}/{name}", f"{below}{name}/", above | {real})


def existing_folder(root: str | None, source: str) -> str:
    """The root as an absolute path, or an error that says what is missing."""
    if not root:
        raise DataError(f"data source '{source}': it needs a root folder, none was given; write {source}:FOLDER")
    root = absolute(os.path.expanduser(root))
    if not g_pathmgr.isdir(root):
        what = "is a file, not a folder" if g_pathmgr.isfile(root) else "no such folder"
        raise DataError(f"data source '{source}': {root}: {what}; give the folder that holds the videos")
    return root


def folder_source(root: str | None, options: SourceOptions) -> Splits:
    """Splits of ROOT/train and ROOT/test where both exist, else of ROOT/<class>/* by `test_fraction` or `group`.

    The videos are unlabelled unless each of them lies directly in one of at least two class folders.
    """
    root = existing_folder(root, "folder")
    name = os.path.basename(root.rstrip("/")) or root
    _, folders = entries(root)
    test = next((folder for folder in TEST_FOLDERS if folder in folders), None)
    if "train" in folders and test:
        return _two_folders(root, test, name)
    videos, notes = _labelled(root, [""])
    if not videos[0].labelled:
        return Splits(videos[0], None, name, notes)
    train, held_out, how = hold_out(videos[0], options)
    return Splits(train, held_out, f"{name}, {how}", notes)


def _two_folders(root: str, test: str, name: str) -> Splits:
    (train, held_out), notes = _labelled(root, ["train/", f"{test}/"])
    if train.labelled:
        unseen = sorted(set(held_out.labels) - set(train.labels))
        if unseen:
            names = ", ".join(train.classes[label] for label in unseen[:3])
            notes += (f"{len(unseen)} classes of {test} have no training video ({names})",)
    return Splits(train, held_out, f"{name}, {test}", notes)


def _labelled(root: str, parts: list[str]) -> tuple[list[Videos], tuple[str, ...]]:
    """One list per part ('' or 'train/', 'test/'), all with the same classes, and a note where some have none."""
    sides = [_videos_below(root, part) for part in parts]
    folders = [[_class_folder(path[len(part) :]) for path in paths] for part, paths in zip(parts, sides, strict=True)]
    classes = sorted(set().union(*folders))
    if "" in classes or len(classes) < 2:
        total, inside = sum(map(len, folders)), sum(bool(folder) for side in folders for folder in side)
        note = f"{inside} of {total} videos lie in a class folder, the others do not: all are read as unlabelled"
        return [Videos.build(paths, None, (), root) for paths in sides], (note,) if 0 < inside < total else ()
    ids = {name: label for label, name in enumerate(classes)}
    labels = [[ids[folder] for folder in side] for side in folders]
    return [Videos.build(*rows, classes, root) for rows in zip(sides, labels, strict=True)], ()


def _videos_below(root: str, part: str) -> list[str]:
    paths = [part + path for path in walk(f"{root}/{part}")]
    if not paths:
        few = ", ".join(sorted(VIDEO_SUFFIXES)[:4])
        advice = f"give a folder that holds videos ({few} and others)"
        raise DataError(f"{root}/{part}: no video file in it or below it; {advice}")
    return paths


def _class_folder(path: str) -> str:
    """The folder that a video lies in directly, nothing where it lies loose or deeper."""
    folder = os.path.dirname(path)
    return "" if "/" in folder else folder
