"""Videos that a text file lists: PyTorchVideo's `path label`, comma separated tables, or one path per line."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from iopath.common.file_io import g_pathmgr

from vssl_core.data.folders import is_video
from vssl_core.data.splits import hold_out
from vssl_core.data.videos import NO_LABEL, Rows, SourceOptions, Splits, Videos, absolute
from vssl_core.errors import DataError, did_you_mean

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_path", "name")
LABEL_COLUMNS = ("label", "class", "category", "action", "label_id", "class_id", "target")
KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
TEST_NAMES = ("test", "val", "validate", "validation")
PROBES = 20  # files of a list that are looked for; asking for each would take minutes on a long list


class Labels:
    """The classes met while lists are read: names, or numbers, or those of a class list and nothing else."""

    def __init__(self, listed: Sequence[str] = (), where: str = "") -> None:
        self._ids = {name: label for label, name in enumerate(listed)}
        self._listed, self._where = tuple(listed), where
        self._numbers: bool | None = None

    def id(self, text: str) -> int:
        """A number for this label, to be translated by `finish`; a ValueError says what is wrong with it."""
        known = self._ids.get(text)
        return self._meet(text) if known is None else known

    def _meet(self, text: str) -> int:
        number = _integer(text)
        if number == NO_LABEL:
            return NO_LABEL
        if self._listed:
            return self._look_up(text, number)
        if self._numbers is None:
            self._numbers = number is not None
        if (number is not None) != self._numbers:
            raise ValueError(f"label '{_short(text)}' is {'not ' * self._numbers}a number, unlike the labels before")
        if number is not None and number < 0:
            raise ValueError(f"label {number} is negative; -1 alone may be, for a video without a label")
        name = text if number is None else str(number)
        self._ids[text] = self._ids.setdefault(name, len(set(self._ids.values())))
        return self._ids[text]

    def _look_up(self, text: str, number: int | None) -> int:
        if number is not None and 0 <= number < len(self._listed):
            self._ids[text] = number
            return number
        raise ValueError(
            f"label '{_short(text)}' is not among the {len(self._listed)} classes of {self._where}"
            + did_you_mean(text, self._listed)
        )

    def finish(self, videos: Videos) -> Videos:
        """The same rows with classes in alphabetical (numbers: numerical) order, or in that of the class list."""
        if self._listed or not self._ids:
            return videos.relabelled(videos.labels, self._listed)
        names = {label: name if self._numbers is False else str(int(name)) for name, label in self._ids.items()}
        order = sorted(names, key=lambda label: (int(names[label]) if self._numbers else 0, names[label]))
        new = np.full(len(order) + 1, NO_LABEL, np.int32)  # the last entry serves label -1
        new[order] = np.arange(len(order))
        return videos.relabelled(new[videos.labels], [names[label] for label in order])


@dataclass(frozen=True)
class Table:
    """A list file while it is read: its column names, where it has any, and an iterator over (line number, fields)."""

    file: str
    header: tuple[str, ...] | None
    rows: Iterator[tuple[int, list[str]]]

    @property
    def kinetics(self) -> bool:
        """Whether the columns are those of the Kinetics lists."""
        return self.header is not None and all(column in self.header for column in KINETICS_COLUMNS)


def csv_source(root: str | None, options: SourceOptions) -> Splits:
    """Splits of a labelled list: ROOT is a file (cut by fraction or group) or a folder with train.csv and test.csv."""
    files = list_files(root, "csv", (".csv", ".txt"))
    if open_table(files[0]).kinetics:
        from vssl_core.data.official import kinetics_lists  # that room stands on this one

        return kinetics_lists(files, os.path.dirname(files[0]), options)
    labels = _listed_classes(os.path.dirname(files[0]))
    return _listed(files, root, labels, options)


def list_source(root: str | None, options: SourceOptions) -> Splits:
    """Splits of an unlabelled list with one path per line: a file, or a folder with train.txt and perhaps test.txt."""
    return _listed(list_files(root, "list", (".txt", ".list", ".csv")), root, None, options)


def _listed(files: list[str], root: str | None, labels: Labels | None, options: SourceOptions) -> Splits:
    above = absolute(os.path.expanduser(root or ""))
    sides = [_read(file, above, labels) for file in files]
    if labels is not None:
        sides = [labels.finish(videos) for videos in sides]
    name = os.path.basename(files[0]) if len(files) == 1 else f"{os.path.basename(above)}, {os.path.basename(files[1])}"
    if len(files) == 2:
        return Splits(sides[0], sides[1], name)
    if not sides[0].labelled:
        return Splits(sides[0], None, name)
    train, held_out, how = hold_out(sides[0], options)
    return Splits(train, held_out, f"{name}, {how}")


def _read(file: str, above: str, labels: Labels | None) -> Videos:
    """All rows of one list file; relative paths count from the file's folder, else from the folder `above` it."""
    rows = Rows(os.path.dirname(file))
    if labels is None:
        for number, path in lines(file):
            if not is_video(path):
                raise bad_line(file, number, _not_a_video(path))
            rows.add(path)
    else:
        _read_table(open_table(file), rows, labels)
    if not len(rows):
        raise DataError(f"{file}: lists no video; write one path per line")
    videos = rows.videos()
    return _with_root(videos, above, file) if g_pathmgr.isdir(above) else _with_root(videos, videos.root, file)


def _read_table(table: Table, rows: Rows, labels: Labels) -> None:
    path_column, label_column, width = _columns(table)
    for number, fields in table.rows:
        if width is None:  # no header: the first row says whether there are labels
            width, label_column = len(fields), 1 if len(fields) == 2 else None
        if len(fields) != width:
            shown = _short(" ".join(fields))
            raise bad_line(table.file, number, f"has {len(fields)} columns where {width} are expected ('{shown}')")
        path = fields[path_column].strip()
        if not is_video(path):
            raise bad_line(table.file, number, _not_a_video(path))
        rows.add(path)
        try:
            rows.labels.append(NO_LABEL if label_column is None else labels.id(fields[label_column].strip()))
        except ValueError as error:
            raise bad_line(table.file, number, str(error)) from None


def bad_line(file: str, number: int, what: str) -> DataError:
    """The error that says what is wrong with one line of a file."""
    return DataError(f"{file}, line {number}: {what}")


def _columns(table: Table) -> tuple[int, int | None, int | None]:
    """Which column holds the path, which the label, and how many there are (None: the first row tells)."""
    if table.header is None:
        return 0, None, None
    path = next((table.header.index(name) for name in PATH_COLUMNS if name in table.header), None)
    if path is None:
        raise bad_line(table.file, 1, f"names the columns {', '.join(table.header)}; one must be called 'path'")
    label = next((table.header.index(name) for name in LABEL_COLUMNS if name in table.header), None)
    return path, label, len(table.header)


def open_table(file: str) -> Table:
    """The table of a list file, comma or blank separated, with its header taken off where it has one."""
    first = first_line(file)
    fields = next(csv.reader([first]), [])
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *KINETICS_COLUMNS}
    commas = len(fields) > 1 and (any(is_video(field.strip()) for field in fields) or _names(fields) & known)
    rows = _comma_rows(file) if commas else _blank_rows(file)
    number, head = next(rows, (0, []))
    if commas and len(head) > 2 and not _names(head) & known:
        raise bad_line(file, number, f"has {len(head)} columns; name them in a first line such as path,label")
    if head and not any(is_video(field.strip()) for field in head) and _names(head) & known:
        return Table(file, tuple(field.strip().lower() for field in head), rows)
    return Table(file, None, chain([(number, head)], rows) if head else iter(()))


def _names(fields: Iterable[str]) -> set[str]:
    return {field.strip().lower() for field in fields}


def _comma_rows(file: str) -> Iterator[tuple[int, list[str]]]:
    with g_pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        try:
            yield from ((reader.line_num, fields) for fields in reader if fields)
        except csv.Error as error:
            raise bad_line(file, reader.line_num, f"not comma separated values ({error})") from None


def _blank_rows(file: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(file):
        yield number, [line] if is_video(line) else line.rsplit(None, 1)  # a path may hold blanks, a label may not


def lines(file: str) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that hold anything."""
    with g_pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, 1):
            if line := line.strip():
                yield number, line


def first_line(file: str) -> str:
    """The first line that is not empty, or nothing."""
    try:
        return next((line for _, line in lines(file)), "")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None


def list_files(root: str | None, source: str, suffixes: Sequence[str], tests: Sequence[str] = TEST_NAMES) -> list[str]:
    """The training list and, where there is one, the test list that `root` (a file or a folder) stands for."""
    if not root:
        raise DataError(f"data source '{source}': it needs a list file or a folder that holds them, none was given")
    root = absolute(os.path.expanduser(root))
    if g_pathmgr.isfile(root):
        return [root]
    if not g_pathmgr.isdir(root):
        raise DataError(f"data source '{source}': {root}: no such file or folder; give a list, or its folder")
    for folder in (root, f"{root}/annotations"):
        for suffix in suffixes:
            if g_pathmgr.isfile(train := f"{folder}/train{suffix}"):
                test = next((path for name in tests if g_pathmgr.isfile(path := f"{folder}/{name}{suffix}")), None)
                return [train, test] if test else [train]
    raise DataError(f"data source '{source}': {root}: holds no train{suffixes[0]}; give the list file itself")


def _listed_classes(folder: str) -> Labels:
    """The class list beside the lists (classes.txt, one name a line), where there is one."""
    file = f"{folder}/classes.txt"
    return Labels([line for _, line in lines(file)], file) if g_pathmgr.isfile(file) else Labels()


def _with_root(videos: Videos, above: str, file: str) -> Videos:
    """The rows below whichever folder has them; a DataError where none of a few rows that are tried exists."""
    tried = np.unique(np.linspace(0, len(videos) - 1, PROBES).astype(int)).tolist()
    for root in dict.fromkeys((videos.root, above)):
        moved = videos.moved(root)
        if any(g_pathmgr.isfile(moved.path(index)) for index in tried):
            return moved
    raise DataError(
        f"{file}: none of the {len(tried)} listed videos that were looked for exists, the first is {videos.path(0)}; "
        "relative paths count from the folder of the list"
    )


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _not_a_video(path: str) -> str:
    return f"'{_short(path)}' does not end as a video file does (.mp4, .avi, .mkv, ...)"
