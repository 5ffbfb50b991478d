"""Data sets with official lists: UCF101, HMDB51 and Kinetics, whose lists name videos by stem while suffixes vary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from iopath.common.file_io import g_pathmgr

from vssl_core.data.folders import entries, existing_folder, walk
from vssl_core.data.lists import Labels, Table, bad_line, lines, list_files, open_table
from vssl_core.data.splits import hold_out, shorten
from vssl_core.data.videos import NO_LABEL, SourceOptions, Splits, Videos
from vssl_core.errors import DataError

Listed = list[tuple[str, int]]  # what a list names a video, without suffix, and its label


def ucf101_source(root: str | None, options: SourceOptions) -> Splits:
    """UCF101's official split 1, 2 or 3, from ROOT/ucfTrainTestlist and ROOT/videos, ROOT/UCF-101 or ROOT/<Class>."""
    root = existing_folder(root, "ucf101")
    _check_split(options.split, "ucf101")
    lists = _folder_with_class_index(root)
    classes = _class_index(f"{lists}/classInd.txt")
    sides = [_ucf_list(f"{lists}/{side}list{options.split:02d}.txt", classes) for side in ("train", "test")]
    return _matched(sides, root, ("videos", "UCF-101", "UCF101", ""), classes, f"ucf101 split {options.split}")


def hmdb51_source(root: str | None, options: SourceOptions) -> Splits:
    """HMDB51's official split 1, 2 or 3, from ROOT/testTrainMulti_7030_splits or ROOT/splits."""
    root = existing_folder(root, "hmdb51")
    _check_split(options.split, "hmdb51")
    ending = f"_test_split{options.split}.txt"
    for name in ("testTrainMulti_7030_splits", "splits", ""):
        folder = f"{root}/{name}".rstrip("/")
        names = g_pathmgr.ls(folder) if g_pathmgr.isdir(folder) else []
        if files := sorted(name for name in names if name.endswith(ending)):
            break
    else:
        where = f"data source 'hmdb51': {root}/testTrainMulti_7030_splits"
        raise DataError(f"{where}: no official lists *{ending} in it; put them there")
    classes = [file.removesuffix(ending) for file in files]
    sides: tuple[Listed, Listed] = ([], [])
    for label, file in enumerate(files):
        _hmdb_list(f"{folder}/{file}", classes[label], label, sides)
    return _matched(list(sides), root, ("videos", "hmdb51_org", "hmdb51", ""), classes, f"hmdb51 split {options.split}")


def kinetics_source(root: str | None, options: SourceOptions) -> Splits:
    """Kinetics from ROOT/train.csv and ROOT/val.csv (or in ROOT/annotations); videos may lie anywhere below ROOT."""
    files = list_files(root, "kinetics", (".csv",), ("val", "validate", "validation", "test"))
    folder = os.path.dirname(files[0])
    above = os.path.dirname(folder) if os.path.basename(folder) == "annotations" else folder
    return kinetics_lists(files, above, options)


def kinetics_lists(files: Sequence[str], root: str, options: SourceOptions) -> Splits:
    """Splits of lists with the columns label, youtube_id, time_start, time_end; a single one is cut by fraction."""
    labels = Labels()
    sides = [list(_kinetics_rows(open_table(file), labels)) for file in files]
    found = _by_stem(walk(root))
    name = f"kinetics, {' and '.join(os.path.basename(file) for file in files)}"
    videos, notes = zip(*(_found(side, found, root, ()) for side in sides), strict=True)
    _refuse_nothing(videos[0], sides[0], root, name)
    train, *test = [labels.finish(side) for side in videos]
    if test:
        return Splits(train, test[0], name, sum(notes, ()))
    train, held_out, how = hold_out(train, options)
    return Splits(train, held_out, f"{name}, {how}", notes[0])


def _kinetics_rows(table: Table, labels: Labels) -> Iterator[tuple[str, int]]:
    if not table.kinetics or table.header is None:
        raise bad_line(table.file, 1, "must name the columns label, youtube_id, time_start and time_end")
    identifier, start, end = (table.header.index(name) for name in ("youtube_id", "time_start", "time_end"))
    label = table.header.index("label") if "label" in table.header else None
    for number, fields in table.rows:
        if len(fields) != len(table.header):
            raise bad_line(table.file, number, f"has {len(fields)} columns where {len(table.header)} are expected")
        try:
            seconds = [int(float(fields[column])) for column in (start, end)]
        except (ValueError, OverflowError):
            times = f"'{fields[start]}' and '{fields[end]}'"
            raise bad_line(table.file, number, f"time_start and time_end must be numbers, got {times}") from None
        name = f"{fields[identifier]}_{seconds[0]:06d}_{seconds[1]:06d}"
        yield name, NO_LABEL if label is None else labels.id(fields[label])


def _check_split(split: int, source: str) -> None:
    if split not in (1, 2, 3):
        raise DataError(f"data.split: {source} has the splits 1, 2 and 3, got {split}")


def _folder_with_class_index(root: str) -> str:
    """Where UCF101's lists lie: below the root, beside it, or in it."""
    for folder in (f"{root}/ucfTrainTestlist", f"{root}/splits", root, f"{os.path.dirname(root)}/ucfTrainTestlist"):
        if g_pathmgr.isfile(f"{folder}/classInd.txt"):
            return folder
    where = f"data source 'ucf101': {root}/ucfTrainTestlist"
    raise DataError(f"{where}: the official lists (classInd.txt, ...) are not there; put them there")


def _class_index(file: str) -> list[str]:
    """The class names of classInd.txt, whose lines are `number name` with numbers from 1."""
    names: list[str] = []
    for number, line in lines(file):
        fields = line.split(None, 1)
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            raise bad_line(file, number, f"expected '{len(names) + 1} CLASS', got '{line[:60]}'")
        names.append(fields[1])
    return names


def _ucf_list(file: str, classes: Sequence[str]) -> Listed:
    """Rows `Class/stem.avi number`, or without the number; the folder names the class, a number must agree with it."""
    ids = {name.lower(): label for label, name in enumerate(classes)}
    rows = []
    for number, line in _existing_lines(file):
        path, _, last = line.rpartition(" ")
        path, given = (path.strip(), last) if path and last.isdigit() else (line, None)
        folder, _, name = path.rpartition("/")
        label = ids.get(folder.lower())
        if label is None:
            raise bad_line(file, number, f"'{folder}' is not a class of classInd.txt ('{line[:60]}')")
        if given is not None and int(given) != label + 1:
            raise bad_line(file, number, f"class {folder} is number {label + 1} in classInd.txt, not {given}")
        rows.append((f"{folder}/{name.rpartition('.')[0] or name}", label))
    return rows


def _hmdb_list(file: str, folder: str, label: int, sides: tuple[Listed, Listed]) -> None:
    """Append rows `name.avi 1` to the training side and `name.avi 2` to the test side; 0 is in neither."""
    for number, line in _existing_lines(file):
        name, _, side = line.rpartition(" ")
        if side not in ("0", "1", "2") or not name:
            raise bad_line(file, number, f"expected 'NAME 0', 1 or 2, got '{line[:60]}'")
        if side != "0":
            sides[int(side) - 1].append((f"{folder}/{name.strip().rpartition('.')[0] or name.strip()}", label))


def _existing_lines(file: str) -> Iterator[tuple[int, str]]:
    if not g_pathmgr.isfile(file):
        raise DataError(f"{file}: no such list; put the official split files there")
    return lines(file)


def _matched(sides: list[Listed], root: str, folders: Sequence[str], classes: Sequence[str], name: str) -> Splits:
    """The listed videos that lie in the first of the folders that holds any; the others are counted in a note."""
    wanted = frozenset(folder.lower() for folder in classes)
    for folder in (f"{root}/{below}".rstrip("/") for below in folders):
        if not g_pathmgr.isdir(folder):
            continue
        found = _by_stem(_class_folders(folder, wanted))
        train, train_note = _found(sides[0], found, folder, classes)
        if len(train):
            test, test_note = _found(sides[1], found, folder, classes)
            return Splits(train, test if len(test) else None, name, train_note + test_note)
    _refuse_nothing(Videos.build((), None, (), root), sides[0], root, name)
    raise AssertionError("an empty list is always refused")


def _class_folders(root: str, wanted: frozenset[str]) -> Iterator[str]:
    """Relative paths of videos in the class folders of `root` and, after them, of those that lie loose in it."""
    videos, folders = entries(root)
    for folder in folders:
        if folder.lower() in wanted:  # whatever else lies there is not ours
            yield from (f"{folder}/{video}" for video in entries(f"{root}/{folder}")[0])
    yield from videos


def _by_stem(paths: Iterable[str]) -> dict[str, str]:
    """Path by class/stem and by stem, as written and in lower case; where two files share one, the first counts."""
    found: dict[str, str] = {}
    for path in paths:
        stem = path[: path.rfind(".")]
        name = stem[stem.rfind("/") + 1 :]
        for key in (stem, stem.lower(), name, name.lower()):
            found.setdefault(key, path)
    return found


def _found(side: Listed, found: dict[str, str], root: str, classes: Sequence[str]) -> tuple[Videos, tuple[str, ...]]:
    """The rows whose file exists, in list order, and a note on those whose file does not."""
    paths, labels, missing = [], [], []
    for key, label in side:
        path = _look_up(key, found)
        if path is None:
            missing.append(key)
        else:
            paths.append(path)
            labels.append(label)
    note = f"{len(missing)} of {len(side)} listed videos are missing below {root} ({shorten(missing)})"
    return Videos.build(paths, labels, classes, root), (note,) if missing else ()


def _look_up(key: str, found: dict[str, str]) -> str | None:
    name = key[key.rfind("/") + 1 :]
    return found.get(key) or found.get(key.lower()) or found.get(name) or found.get(name.lower())


def _refuse_nothing(videos: Videos, side: Listed, root: str, name: str) -> None:
    if not len(videos):
        first = f" (the first: {side[0][0]})" if side else ""
        raise DataError(f"{name}: none of the {len(side)} listed training videos{first} lies in {root}; check the root")
