"""Lists of videos: what every source makes of good and of bad folders and lists, and how compact the result is."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import videos_folder

from vssl_core.data.folders import is_video, walk
from vssl_core.data.sources import SourceOptions, Splits, Videos, builtin_sources, guess_source, open_source
from vssl_core.errors import DataError


def write(root: Path, paths: Iterable[str]) -> Path:
    """Empty files: no source opens a video."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def text(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    return path


def read(source: str, root: Path | str | None, **options) -> Splits:
    return open_source(source, None if root is None else str(root), SourceOptions(**options), builtin_sources())


def rows(videos: Videos | None) -> list[tuple[str, str | None]]:
    assert videos is not None
    names = [*videos.classes, None]  # -1 is the last
    return [(videos.relative(index), names[videos.labels[index]]) for index in range(len(videos))]


def refusal(source: str, root: Path | str | None, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(source, root, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# The compact list


RELATIVE_PATHS = st.text("ab/é 中#.", min_size=1).filter(lambda path: not path.startswith("/"))


@given(
    st.lists(st.tuples(RELATIVE_PATHS, st.integers(-1, 4))),
    st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_the_list_gives_back_what_it_was_built_from(pairs, random):
    paths, labels = [path for path, _ in pairs], [label for _, label in pairs]
    videos = Videos.build(paths, labels, list("vwxyz"), "/data")
    assert len(videos) == len(pairs)
    assert [videos.relative(index) for index in range(len(videos))] == paths
    assert [videos.path(index) for index in range(len(videos))] == [f"/data/{path}" for path in paths]
    assert videos.labels.tolist() == labels and videos.labels.dtype == np.int32
    assert [key.decode() for key in videos.keys()] == paths
    order = random.sample(range(len(paths)), len(paths))
    shuffled = videos.select(np.array(order, int))
    assert [shuffled.relative(index) for index in range(len(paths))] == [paths[index] for index in order]
    assert shuffled.labels.tolist() == [labels[index] for index in order]


def test_an_index_outside_the_list_is_an_error_and_a_negative_one_counts_from_the_end():
    videos = Videos.build(["a.mp4", "b.mp4"], None, (), "/data")
    assert videos.relative(-1) == "b.mp4"
    with pytest.raises(IndexError):
        videos.path(2)


def test_names_that_are_not_utf8_survive():
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    assert Videos.build([name], None, (), "/data").path(0) == f"/data/{name}"


def test_the_list_is_read_only_and_survives_pickling():
    videos = Videos.build(["x/a.mp4", "y/b.mp4"], [0, 1], ["x", "y"], "/data")
    with pytest.raises(ValueError):
        videos.labels[0] = 1
    copy = pickle.loads(pickle.dumps(videos))
    assert rows(copy) == rows(videos) and copy.path(1) == "/data/y/b.mp4" and copy.digest() == videos.digest()


def test_the_digest_tells_lists_apart_but_not_roots():
    def digest(paths, labels, root="/data"):
        return Videos.build(paths, labels, ["x", "y"], root).digest()

    first = digest(["a.mp4", "b.mp4"], [0, 1])
    assert first == digest(["a.mp4", "b.mp4"], [0, 1], "/elsewhere")
    assert first == digest(["/elsewhere/a.mp4", "/elsewhere/b.mp4"], [0, 1], "/elsewhere")
    others = [
        digest(["a.mp4", "b.mp4"], [1, 0]),
        digest(["b.mp4", "a.mp4"], [0, 1]),
        digest(["a.mp", "4b.mp4"], [0, 1]),
        digest(["a.mp4"], [0]),
    ]
    assert len({first, *others}) == 5


def test_absolute_paths_outside_the_root_get_the_folder_they_share_as_root():
    videos = Videos.build(["/far/a/1.mp4", "/far/b/2.mp4"], None, (), "/data")
    assert videos.root == "/far" and videos.relative(1) == "b/2.mp4" and videos.path(1) == "/far/b/2.mp4"
    mixed = Videos.build(["/far/a/1.mp4", "b/2.mp4"], None, (), "/data")
    assert [mixed.path(0), mixed.path(1)] == ["/far/a/1.mp4", "/data/b/2.mp4"]
    remote = Videos.build(["s3://bucket/a/1.mp4", "s3://bucket/b/2.mp4"], None, (), "/data")
    assert remote.path(0) == "s3://bucket/a/1.mp4" and remote.relative(1) == "b/2.mp4"


# Folders


def test_a_folder_of_classes_is_split_per_class_to_the_exact_share(tmp_path):
    counts = {"run": 40, "jump": 9, "wave": 2}
    write(tmp_path, [f"{name}/{number:03}.mp4" for name, count in counts.items() for number in range(count)])
    splits = read("folder", tmp_path)
    assert splits.train.classes == splits.test.classes == ("jump", "run", "wave")
    assert Counter(name for _, name in rows(splits.test)) == {"run": 10, "jump": 2, "wave": 1}
    assert sorted(rows(splits.train) + rows(splits.test)) == sorted(
        (path.relative_to(tmp_path).as_posix(), path.parent.name) for path in tmp_path.rglob("*.*")
    )
    assert rows(splits.train) == sorted(rows(splits.train))


def test_the_split_is_the_same_wherever_the_folder_lies_and_stays_when_a_video_comes(tmp_path):
    names = [f"{name}/{number}.mp4" for name in "xy" for number in range(20)]
    here, there = read("folder", write(tmp_path / "here", names)), read("folder", write(tmp_path / "there", names))
    assert rows(here.test) == rows(there.test) and here.test.digest() == there.test.digest()
    assert here.train.digest() != here.test.digest()
    more = read("folder", write(tmp_path / "there", ["x/new.mp4"]))
    assert len(set(rows(more.test)) ^ set(rows(here.test))) <= 2


def test_the_split_is_frozen_so_that_it_is_equal_on_every_machine(tmp_path):
    splits = read("folder", write(tmp_path, [f"{name}/{number}.mp4" for name in "xy" for number in range(8)]))
    assert [path for path, _ in rows(splits.test)] == FROZEN_TEST_ROWS
    assert splits.train.digest().startswith(FROZEN_DIGEST)


FROZEN_TEST_ROWS = ["x/1.mp4", "x/7.mp4", "y/1.mp4", "y/2.mp4"]
FROZEN_DIGEST = "26d140ec53e7"


def test_test_fraction_zero_keeps_everything_for_training_and_one_is_refused(tmp_path):
    write(tmp_path, ["x/1.mp4", "x/2.mp4", "y/1.mp4"])
    splits = read("folder", tmp_path, test_fraction=0)
    assert splits.test is None and len(splits.train) == 3
    assert "test_fraction" in refusal("folder", tmp_path, test_fraction=1)
    shutil.rmtree(tmp_path / "x")
    assert "too few" in refusal("folder", write(tmp_path, ["x/1.mp4"]))


@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 6), min_size=2, max_size=12),
    st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_ever_on_both_sides(groups, fraction, per_class):
    from vssl_core.data.splits import hold_out

    paths = [
        f"{name}/v_g{group}{name if per_class else ''}_c{number}.mp4"
        for name in ("run", "walk")
        for group, count in groups.items()
        for number in range(count)
    ]
    videos = Videos.build(paths, [path.startswith("walk") for path in paths], ("run", "walk"), "/data")
    train, test, name = hold_out(videos, SourceOptions(test_fraction=fraction, group=r"_(g\d+[a-z]*)_"))
    sides = [{path.split("_")[1] for path, _ in rows(side)} for side in (train, test)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sorted(rows(train) + rows(test)) == sorted(rows(videos)) and "group" in name


def test_groups_keep_the_share_of_each_class_where_they_can(tmp_path):
    write(tmp_path, [f"{name}/{who}{who}_{name}.mp4" for name in ("bend", "run", "skip") for who in "abcdefgh"])
    splits = read("folder", tmp_path, group="^([a-z]+)_")
    assert Counter(name for _, name in rows(splits.test)) == {"bend": 2, "run": 2, "skip": 2}


@pytest.mark.parametrize(
    ("pattern", "part"),
    [("(", "regular expression"), ("^z", "does not match"), ("(q)?mp", "matches nothing"), ("mp4", "single group")],
)
def test_a_group_pattern_that_cannot_be_used_is_refused(tmp_path, pattern, part):
    sentence = refusal("folder", write(tmp_path, ["x/a.mp4", "x/b.mp4", "y/c.mp4"]), group=pattern)
    assert "data.group" in sentence and part in sentence


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    write(tmp_path, ["train/x/1.mp4", "train/y/1.mp4", "test/y/1.mp4", "test/z/1.mp4", "other/x/9.mp4"])
    splits = read("folder", tmp_path)
    assert rows(splits.train) == [("train/x/1.mp4", "x"), ("train/y/1.mp4", "y")]
    assert rows(splits.test) == [("test/y/1.mp4", "y"), ("test/z/1.mp4", "z")]
    assert splits.train.classes == splits.test.classes == ("x", "y", "z")
    assert len(splits.notes) == 1 and "z" in splits.notes[0]


def test_flat_train_and_val_folders_are_unlabelled(tmp_path):
    splits = read("folder", write(tmp_path, ["train/1.mp4", "train/2.mp4", "val/3.mp4"]))
    assert rows(splits.train) == [("train/1.mp4", None), ("train/2.mp4", None)] and splits.train.classes == ()
    assert rows(splits.test) == [("val/3.mp4", None)]


@pytest.mark.parametrize(
    ("paths", "notes"),
    [
        (["1.mp4", "2.mp4"], 0),
        (["only/1.mp4", "only/2.mp4"], 1),
        (["x/1.mp4", "y/2.mp4", "loose.mp4"], 1),
        (["x/1.mp4", "y/deep/2.mp4"], 1),
        (["2024/05/1.mp4", "2025/06/2.mp4"], 0),
    ],
)
def test_videos_that_do_not_lie_in_class_folders_are_unlabelled(tmp_path, paths, notes):
    splits = read("folder", write(tmp_path, paths))
    assert sorted(rows(splits.train)) == [(path, None) for path in sorted(paths)]
    assert splits.test is None and splits.train.classes == () and len(splits.notes) <= notes


def test_hidden_files_other_files_and_links_in_a_circle_are_passed_over(tmp_path):
    write(tmp_path, ["x/a.MP4", "x/._a.mp4", "x/notes.txt", ".cache/b.mp4", "y/c.webm", "y/mp4", "y/d.mp4.part"])
    (tmp_path / "y" / "again").symlink_to(tmp_path)
    assert [path for path in walk(str(tmp_path)) if "again" not in path] == ["x/a.MP4", "y/c.webm"]
    assert sum(1 for _ in walk(str(tmp_path))) == 2


@pytest.mark.parametrize(("name", "video"), [("a.mp4", True), ("d/a.Avi", True), (".mp4", False), ("a.mp4/b", False)])
def test_a_video_is_known_by_its_suffix(name, video):
    assert is_video(name) is video


def test_missing_and_empty_folders_are_refused(tmp_path):
    assert "needs a root" in refusal("folder", None)
    assert str(tmp_path / "nowhere") in refusal("folder", tmp_path / "nowhere")
    assert "no video file" in refusal("folder", tmp_path)
    assert "no video file" in refusal("folder", write(tmp_path, ["train/x.mp4", "test/notes.txt"]))
    assert "not a folder" in refusal("folder", tmp_path / "train" / "x.mp4")


def test_an_unknown_source_is_refused_with_a_suggestion():
    assert "did you mean 'ucf101'" in refusal("ucf11", "/data")


def test_sources_of_plugins_are_opened_and_checked_alike():
    videos = Videos.build(["a.mp4"], None, (), "/data")
    offered: Mapping = {
        "good": lambda root, options: Splits(videos, None, "good"),
        "leaky": lambda root, options: Splits(videos, videos, "leaky"),
        "wrong": lambda root, options: [videos],
        "empty": lambda root, options: Splits(Videos.build([], None, (), "/"), None, "empty"),
    }
    assert open_source("good", None, SourceOptions(), offered).train is videos
    for name, part in {"leaky": "both sides", "wrong": "must return Splits", "empty": "no video"}.items():
        with pytest.raises(DataError, match=part):
            open_source(name, None, SourceOptions(), offered)


# List files


def test_pytorchvideo_lists_with_numbers(tmp_path):
    write(tmp_path, ["v/a b.mp4", "v/b.mp4", "v/c.mp4"])
    text(tmp_path / "train.csv", "v/a b.mp4 3\nv/b.mp4 11\n\n")
    text(tmp_path / "val.csv", f"{tmp_path}/v/c.mp4 3\n")
    splits = read("csv", tmp_path)
    assert rows(splits.train) == [("v/a b.mp4", "3"), ("v/b.mp4", "11")] and splits.train.classes == ("3", "11")
    assert rows(splits.test) == [("v/c.mp4", "3")]


def test_comma_separated_tables_with_and_without_header(tmp_path):
    write(tmp_path, ["a,1.mp4", "b.mp4"])
    plain = text(tmp_path / "plain.csv", '"a,1.mp4",walk\nb.mp4,run\n')
    assert rows(read("csv", plain, test_fraction=0).train) == [("a,1.mp4", "walk"), ("b.mp4", "run")]
    headed = text(tmp_path / "headed.csv", '\ufeffLabel, Path ,fps\nwalk,"a,1.mp4",25\nrun,b.mp4,\n')
    assert rows(read("csv", headed, test_fraction=0).train) == [("a,1.mp4", "walk"), ("b.mp4", "run")]
    blank = text(tmp_path / "blank.csv", "path label\nb.mp4\twalk\n")
    assert rows(read("csv", blank, test_fraction=0).train) == [("b.mp4", "walk")]


def test_a_single_labelled_list_is_split_and_one_without_labels_is_not(tmp_path):
    names = [f"{number}.mp4" for number in range(12)]
    write(tmp_path, names)
    lines = "".join(f"{name} {number % 2}\n" for number, name in enumerate(names))
    splits = read("csv", text(tmp_path / "all.csv", lines))
    assert len(splits.train) == 8 and Counter(splits.test.labels.tolist()) == {0: 2, 1: 2}
    splits = read("csv", text(tmp_path / "none.csv", "".join(f"{name}\n" for name in names)))
    assert rows(splits.train) == [(name, None) for name in names] and splits.test is None and splits.train.classes == ()


def test_minus_one_is_no_label(tmp_path):
    write(tmp_path, ["a.mp4", "b.mp4"])
    assert rows(read("csv", text(tmp_path / "l.csv", "a.mp4 -1\nb.mp4 0\n"), test_fraction=0).train) == [
        ("a.mp4", None),
        ("b.mp4", "0"),
    ]


def test_a_class_list_beside_the_list_fixes_order_and_range(tmp_path):
    write(tmp_path, ["a.mp4", "b.mp4"])
    text(tmp_path / "classes.txt", "walk\nrun\n")
    splits = read("csv", text(tmp_path / "l.csv", "a.mp4 1\nb.mp4 walk\n"), test_fraction=0)
    assert splits.train.classes == ("walk", "run") and splits.train.labels.tolist() == [1, 0]
    sentence = refusal("csv", text(tmp_path / "l.csv", "a.mp4 1\nb.mp4 2\n"))
    assert "line 2: label '2' is not among the 2 classes" in sentence
    assert "did you mean 'walk'" in refusal("csv", text(tmp_path / "l.csv", "a.mp4 wolk\n"))


@pytest.mark.parametrize(
    ("lines", "number", "part"),
    [
        ("a.mp4 0\nb.mp4\n", 2, "1 columns where 2"),
        ("a.mp4 0\nb.mp4 zero\n", 2, "not a number"),
        ("a.mp4 zero\nb.mp4 0\n", 2, "is a number"),
        ("a.mp4 0\nb.mp4 -2\n", 2, "negative"),
        ("a.mp4,0\n\nb.mp4,0,1\n", 3, "3 columns where 2"),
        ("a.mp4,0,x\n", 1, "name them"),
        ("path,label\na.mp4,0\nsome words,1\n", 3, "'some words' does not end as a video"),
        ("label,fps\n0,25\n", 1, "'path'"),
        ('path,label\n"a.mp4,0\n', 2, "comma separated"),
        ("hello\n", 1, "'hello' does not end"),
        ("youtube_id,time_start,time_end\nabc,one,2\n", 2, "must be numbers"),
        ("youtube_id,time_start,time_end\nabc,1\n", 2, "2 columns"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, lines, number, part):
    write(tmp_path, ["a.mp4", "b.mp4"])
    sentence = refusal("csv", text(tmp_path / "list.csv", lines))
    assert sentence.startswith(f"{tmp_path}/list.csv, line {number}: ") and part in sentence


def test_plain_lists_are_unlabelled_and_their_bad_lines_are_named(tmp_path):
    write(tmp_path, ["sub/a.mp4", "b.mp4 3.mp4"])
    file = text(tmp_path / "files.txt", f"sub/a.mp4\n\n{tmp_path}/b.mp4 3.mp4\n")
    splits = read("list", file)
    assert rows(splits.train) == [("sub/a.mp4", None), ("b.mp4 3.mp4", None)] and splits.test is None
    assert "files.txt, line 2: 'b.mp4 3' does not end" in refusal("list", text(file, "sub/a.mp4\nb.mp4 3\n"))
    assert "lists no video" in refusal("list", text(file, "\n"))
    assert "none of the 2 listed videos" in refusal("list", text(file, "x.mp4\ny.mp4\n"))
    assert "no such file" in refusal("list", tmp_path / "missing.txt")
    assert "holds no train.csv" in refusal("csv", tmp_path)
    assert "none was given" in refusal("csv", None)


def test_lists_in_annotations_count_from_the_folder_above(tmp_path):
    write(tmp_path, ["videos/a.mp4", "videos/b.mp4"])
    text(tmp_path / "annotations/train.txt", "videos/a.mp4\n")
    text(tmp_path / "annotations/test.txt", "videos/b.mp4\n")
    splits = read("list", tmp_path)
    assert splits.train.path(0) == f"{tmp_path}/videos/a.mp4" and splits.test.path(0) == f"{tmp_path}/videos/b.mp4"


def test_a_path_on_both_sides_is_refused_however_it_is_written(tmp_path):
    write(tmp_path, ["a.mp4", "b.mp4"])
    text(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1\n")
    text(tmp_path / "test.csv", f"{tmp_path}/b.mp4 1\n")
    assert f"1 video is on both sides, first {tmp_path}/b.mp4" in refusal("csv", tmp_path)


# Official data sets


def ucf(root: Path, videos: str, suffix: str = ".avi") -> Path:
    names = {"ApplyEyeMakeup": 1, "HandstandPushups": 2}
    text(root / "ucfTrainTestlist/classInd.txt", "".join(f"{number} {name}\n" for name, number in names.items()))
    stem = {"ApplyEyeMakeup": "v_ApplyEyeMakeup", "HandstandPushups": "v_HandStandPushups"}  # as published
    for split in (1, 2, 3):
        listed = [f"{name}/{stem[name]}_g0{group}_c01" for name in names for group in range(1, 4)]
        test = [row for row in listed if f"_g0{split}_" in row]
        train = [f"{row}.avi {names[row.split('/')[0]]}" for row in listed if row not in test]
        text(root / f"ucfTrainTestlist/trainlist0{split}.txt", "\r\n".join(train) + "\r\n")
        text(root / f"ucfTrainTestlist/testlist0{split}.txt", "".join(f"{row}.avi\n" for row in test))
    return write(root, [f"{videos}{row}{suffix}" for row in listed])


@pytest.mark.parametrize("videos", ["videos/", "UCF-101/", ""])
def test_ucf101_finds_its_files_by_stem_wherever_they_lie(tmp_path, videos):
    ucf(tmp_path, videos, ".mp4")
    splits = read("ucf101", tmp_path, split=2)
    assert splits.name == "ucf101 split 2" and splits.notes == ()
    assert [path for path, _ in rows(splits.test)] == [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.mp4",
        "HandstandPushups/v_HandStandPushups_g02_c01.mp4",
    ]
    assert splits.test.labels.tolist() == [0, 1] and len(splits.train) == 4
    assert Path(splits.train.path(0)).is_file()


def test_ucf101_folders_and_files_of_other_case_and_stray_folders(tmp_path):
    ucf(tmp_path, "UCF-101/")
    folder = tmp_path / "UCF-101"
    (folder / "HandstandPushups").rename(folder / "HandStandPushups")
    for file in (folder / "ApplyEyeMakeup").iterdir():
        file.rename(file.with_name(file.name.lower()))
    write(folder, ["A_backup/v_ApplyEyeMakeup_g01_c01.avi", "A_backup/v_HandStandPushups_g01_c01.avi"])
    splits = read("ucf101", tmp_path)
    found = [path for path, _ in rows(splits.train) + rows(splits.test)]
    assert len(found) == 6 and splits.notes == () and not any("backup" in path for path in found)
    assert all((folder / path).is_file() for path in found)


def test_ucf101_counts_listed_videos_that_are_missing(tmp_path):
    ucf(tmp_path, "videos/")
    (tmp_path / "videos/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi").unlink()
    splits = read("ucf101", tmp_path)
    assert len(splits.train) == 3 and len(splits.notes) == 1
    assert splits.notes[0].startswith("1 of 4 listed videos are missing")
    assert "ApplyEyeMakeup_g02_c01" in splits.notes[0]
    shutil.rmtree(tmp_path / "videos")
    assert "none of the 4 listed training videos" in refusal("ucf101", tmp_path)


def test_ucf101_refuses_what_its_lists_cannot_mean(tmp_path):
    ucf(tmp_path, "")
    assert "1, 2 and 3, got 4" in refusal("ucf101", tmp_path, split=4)
    lists = tmp_path / "ucfTrainTestlist"
    text(lists / "trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 2\n")
    assert "trainlist01.txt, line 1: class ApplyEyeMakeup is number 1" in refusal("ucf101", tmp_path)
    text(lists / "trainlist01.txt", "Cooking/v_Cooking_g02_c01.avi 1\n")
    assert "line 1: 'Cooking' is not a class" in refusal("ucf101", tmp_path)
    text(lists / "classInd.txt", "1 ApplyEyeMakeup\nHandstandPushups\n")
    assert "classInd.txt, line 2" in refusal("ucf101", tmp_path)
    (lists / "trainlist02.txt").unlink()
    text(lists / "classInd.txt", "1 ApplyEyeMakeup\n2 HandstandPushups\n")
    assert "trainlist02.txt: no such list" in refusal("ucf101", tmp_path, split=2)
    shutil.rmtree(lists)
    assert "ucfTrainTestlist" in refusal("ucf101", tmp_path)


def test_ucf101_on_real_clips(clips):
    splits = read("ucf101", clips / "ucf101_6")
    assert (len(splits.train), len(splits.test), splits.notes) == (529, 202, ())
    assert {path.split("_g")[1][:2] for path, _ in rows(splits.test)} == {f"0{group}" for group in range(1, 8)}
    assert all(path.split("/")[0] == name for path, name in rows(splits.train) + rows(splits.test))
    assert all(Path(splits.test.path(index)).is_file() for index in range(0, 202, 20))
    assert guess_source(str(clips / "ucf101_6")) == "ucf101"


def hmdb(root: Path) -> Path:
    for name in ("brush_hair", "wave"):
        for split in (1, 2, 3):
            lines = "#20_Rhythm_0.avi 1 \nb;_1.avi 2 \nc_2.avi 0 \n"
            text(root / f"testTrainMulti_7030_splits/{name}_test_split{split}.txt", lines)
        write(root / "videos" / name, ["#20_Rhythm_0.avi", "b;_1.avi", "c_2.avi"])
    return root


def test_hmdb51_reads_its_three_marks(tmp_path):
    splits = read("hmdb51", hmdb(tmp_path), split=3)
    assert rows(splits.train) == [("brush_hair/#20_Rhythm_0.avi", "brush_hair"), ("wave/#20_Rhythm_0.avi", "wave")]
    assert rows(splits.test) == [("brush_hair/b;_1.avi", "brush_hair"), ("wave/b;_1.avi", "wave")]
    assert "got 0" in refusal("hmdb51", tmp_path, split=0)
    text(tmp_path / "testTrainMulti_7030_splits/wave_test_split1.txt", "a_0.avi 1\nb_1.avi 3\n")
    assert "wave_test_split1.txt, line 2: expected" in refusal("hmdb51", tmp_path)
    shutil.rmtree(tmp_path / "testTrainMulti_7030_splits")
    assert "testTrainMulti_7030_splits" in refusal("hmdb51", tmp_path)


@pytest.mark.parametrize("layout", ["train/{label}/{name}.mp4", "videos/{name}.mkv", "{name}.mp4"])
def test_kinetics_finds_its_files_in_any_layout(tmp_path, layout):
    header = "label,youtube_id,time_start,time_end,split\n"
    listed = {"train": ["-Ab_1", "gone"], "val": ["xyz"]}
    for side, names in listed.items():
        lines = "".join(f"playing guitar,{name},3,13,{side}\n" for name in names) + f"archery,{side}0,120,130,{side}\n"
        text(tmp_path / f"annotations/{side}.csv", header + lines)
    names = ["-Ab_1_000003_000013", "xyz_000003_000013", "train0_000120_000130", "val0_000120_000130"]
    write(tmp_path, [layout.format(name=name, label="playing guitar") for name in names])
    splits = read("kinetics", tmp_path)
    assert splits.train.classes == ("archery", "playing guitar")
    assert [name for _, name in rows(splits.train)] == ["playing guitar", "archery"]
    assert [name for _, name in rows(splits.test)] == ["playing guitar", "archery"]
    assert len(splits.notes) == 1 and "1 of 3" in splits.notes[0] and "gone_000003_000013" in splits.notes[0]


def test_a_kinetics_list_is_known_by_its_columns(tmp_path):
    lines = "label,youtube_id,time_start,time_end,split\nrun,abc,1,11,train\nrun,abd,1,11,train\n"
    file = text(tmp_path / "k.csv", lines)
    write(tmp_path, ["run/abc_000001_000011.mp4", "run/abd_000001_000011.mp4"])
    splits = read("csv", file, test_fraction=0.5)
    assert len(splits.train) == len(splits.test) == 1 and splits.train.classes == ("run",)
    shutil.rmtree(tmp_path / "run")
    assert "none of the 2 listed" in refusal("csv", file)


# A plain path


def test_a_plain_path_tells_its_source(tmp_path):
    write(tmp_path, ["a.mp4", "folder/x/a.mp4", "folder/y/b.mp4"])
    write(tmp_path, ["ucf/ucfTrainTestlist/classInd.txt", "lists/train.csv"])
    assert guess_source(str(tmp_path / "folder")) == "folder"
    assert guess_source(str(tmp_path / "ucf")) == "ucf101"
    assert guess_source(str(tmp_path / "lists")) == "csv"
    assert guess_source(str(text(tmp_path / "files.txt", "\na.mp4\n"))) == "list"
    assert guess_source(str(text(tmp_path / "files.csv", "a.mp4 3\n"))) == "csv"
    for path, part in {"nowhere": "no such file", "a.mp4": "is one video"}.items():
        with pytest.raises(DataError, match=part):
            guess_source(str(tmp_path / path))


# Long lists


def long_list(folder: Path, count: int) -> Path:
    """A labelled list in Kinetics' manner, of which only the first file exists."""
    names = [f"{number % 400:03}_some class/{number:011}_000010_000020.mp4" for number in range(count)]
    write(folder, names[:1])
    return text(folder / "train.csv", "".join(f"{name} {number % 400}\n" for number, name in enumerate(names)))


def check_long_list(folder: Path, count: int) -> None:
    splits = read("csv", long_list(folder, count))
    sides = (splits.train, splits.test)
    assert sum(map(len, sides)) == count and len(splits.train.classes) == 400
    for side in sides:
        assert len(pickle.dumps(side)) / len(side) < 100
        assert side.relative(-1).startswith(f"{side.classes[side.labels[-1]]:0>3}_some class/")


def test_a_row_takes_less_than_a_hundred_bytes(tmp_path):
    check_long_list(tmp_path, 20_000)
    tracemalloc.start()
    splits = read("csv", tmp_path / "train.csv")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(splits.train) == 14_800 and held / 20_000 < 100


MEASURE = """
import sys
from vssl_core.data.sources import SourceOptions, builtin_sources, open_source

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

def splits(file):
    return open_source("csv", file, SourceOptions(), builtin_sources())

small = splits(sys.argv[1])
before = resident()
large = splits(sys.argv[2])
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_two_million_rows_are_read_into_little_memory(tmp_path):
    """Resident memory, not only what the arrays hold: nothing that was needed while reading stays."""
    files = [str(long_list(tmp_path / name, count)) for name, count in {"small": 1000, "large": 2_000_000}.items()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, *files], env=environment, capture_output=True, text=True, check=True
    )
    assert int(said.stdout) < 400  # MiB


WORKERS = """
import sys
from pathlib import Path
import numpy as np
from vssl_core.bench import growth, memory_runs
from vssl_core.data.clips import ClipLoader, Clips
from vssl_core.data.raw import Visit
from vssl_core.data.sources import SourceOptions, builtin_sources, open_source

videos = open_source("csv", sys.argv[1], SourceOptions(test_fraction=0), builtin_sources()).train
settings = [*memory_runs.NULL_RUN, "clip.frames=4", "clip.size=16", "batch_size=2"]
run = memory_runs.build_run({"null": memory_runs.Null}, Path(sys.argv[2]), settings)
loader = ClipLoader(Clips(videos, run._loader._loader.dataset.cutter, 0, replace=False), 4)
rows = np.random.default_rng(0).integers(len(videos), size=(400, 7)).tolist()  # all over the list
batches = [[Visit(0, 8 * number + place, row) for place, row in enumerate([0, *some])]
           for number, some in enumerate(rows)]
read = sum(len(batch.groups[0][0].frames) for batch in loader.load(batches))
assert read >= len(batches), "the first video of each batch is there"
workers = loader._loader._iterator._workers
assert len(workers) == 4 and all(worker.is_alive() for worker in workers)
print(len(videos), sum(growth._rollup(worker.pid) for worker in workers))
loader.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads memory from /proc")
def test_two_million_rows_cost_four_workers_little(tmp_path):
    """What the workers of a real loader hold (PSS, so that a page they share counts once), over a list of ten rows."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    held = {}
    for count in (10, 2_000_000):
        file = long_list(tmp_path / str(count), count)
        shutil.copyfile(videos_folder() / "train/left/00.mp4", next((tmp_path / str(count)).glob("*/*.mp4")))
        words = [sys.executable, "-c", WORKERS, str(file), str(tmp_path / "run")]
        said = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        rows, held[count] = map(int, said.stdout.split())
        assert rows == count
    assert (held[2_000_000] - held[10]) / 1e6 < 500  # MB
