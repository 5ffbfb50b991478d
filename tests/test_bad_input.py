"""Whatever you get wrong is told in one sentence, ends with 2, and leaves the last good checkpoint as it was."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import VIDEOS, assert_equal, videos_folder

from vssl_core.cli import main
from vssl_core.run import checkpoint
from vssl_core.run.checkpoint import START

SETTINGS = [
    "clip.frames=4", "clip.size=16", "batch_size=4", "epochs=2", "data.workers=0", "device.kind=cpu",
    "log.tensorboard=false", "checkpoint.keep_every_epochs=1",
]  # fmt: skip
PLUGINS = "rotation"
PATIENCE = 240  # seconds for one process on a busy machine
PROGRAM = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from vssl_core.cli import main
sys.exit(main(sys.argv[2:]))
"""
FOREIGN = """
from vssl_core import hookimpl

@hookimpl
def vssl_run_start(run):
    pass
"""

Refused = Callable[..., str]


# Asking ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(*words): the one sentence that a command line is answered with, the exit code being 2."""

    def ask(*words: str) -> str:
        code = main(words)
        return the_sentence(words[0], code, capsys.readouterr().err)

    return ask


def the_sentence(command: str, code: int, told: str) -> str:
    """What stands on stderr, once it is seen to be one sentence of the form *where: what; what to do*."""
    assert code == 2, told
    assert told.startswith(f"vssl {command}: ") and told.endswith("\n")
    assert told.count("\n") == 1 and "Traceback" not in told, told
    return told.removeprefix(f"vssl {command}: ").rstrip("\n")


def train_words(run: Path | str, *more: str, plugins: str = PLUGINS, data: str | None = None) -> list[str]:
    """The command line of a small run; of two settings of one key the later holds."""
    data = data or f"folder:{videos_folder()}"
    return ["train", "--plugins", plugins, "--data", data, "--run", str(run), *SETTINGS, *more]


def process(*words: str, limit: int = 0) -> tuple[int, str]:
    """Exit code and stderr of a real process; `limit` is the largest file it can write, as on a disk that fills up."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), *words],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that is done; nobody writes in it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(train_words(folder)) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run as it was after its first epoch."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.copyfile(folder / "checkpoints/epoch_0001.pt", folder / checkpoint.NAME)
    return folder


# Command lines and configurations -------------------------------------------------------------------------------------

PAIR = "stor,pace"
APART = ["plugins.pace.contrast=same_context", "views.groups=[[stor, pace]]"]
COMMANDS: dict[str, tuple[str, list[str], list[str]]] = {
    # what is wrong: plugins, further words, what must be told
    "nothing chosen": ("", [], ["plugins: none is chosen", "name some with --plugins"]),
    "unknown plugin": ("rotatoin", [], ["no plugin named 'rotatoin' is installed", "did you mean 'rotation'?"]),
    "plugin twice": ("rotation,stor,rotation", [], ["'rotation' is named twice", "name it once"]),
    "an evaluation": ("retrieval", [], ["'retrieval' is an evaluation", "vssl evaluate --evaluations retrieval"]),
    "unknown key": (PLUGINS, ["optim.lrr=1"], ["optim.lrr: there is no such key", "did you mean 'lr'?"]),
    "unknown section": (PLUGINS, ["optimm.lr=1"], ["optimm: there is no such key", "did you mean 'optim'?"]),
    "unknown option": (PLUGINS, ["plugins.rotation.angels=3"], ["plugins.rotation.angels: there is no such key"]),
    "unused key": (PLUGINS, ["optim.milestones=[1]"], ["milestones has no effect with", "remove it"]),
    "unused option": (
        "stor", ["plugins.stor.layers=1", "plugins.stor.hidden=8"], ["plugins.stor: hidden has no effect", "remove it"]
    ),
    "unused override": (PLUGINS, ["plugins.stor.rates=3"], ["'plugins.stor.rates=3': plugin 'stor' is not chosen"]),
    "unused weight": (PLUGINS, ["weights.rotaton=2"], ["weights.rotaton", "did you mean 'rotation'?"]),
    "weight of none": (PLUGINS, ["weights.byol=2"], ["weights.byol: no objective of this name is chosen"]),
    "wrong type": (PLUGINS, ["epochs=many"], ["epochs: input should be a valid integer", "got 'many'"]),
    "wrong bound": (PLUGINS, ["optim.lr=-1"], ["optim.lr: input should be greater than 0, got -1"]),
    "wrong option": ("stor", ["plugins.stor.layers=9"], ["plugins.stor.layers: input should be less than", "9"]),
    "wrong weight": (PLUGINS, ["weights.rotation.value=-1"], ["weights.rotation.value: ", "got -1"]),
    "a word": (PLUGINS, ["word"], ["'word': an override is key=value, for example optim.lr=0.1"]),
    "no override": (PLUGINS, ["=3"], ["an override is key=value, for example optim.lr=0.1"]),
    "no yaml": (PLUGINS, ["clip.area=[1"], ["'clip.area=[1': is not YAML (line 1: expected ',' or ']', but got"]),
    "forced join": (PAIR, APART, ["views.groups: 'pace' and 'stor' cannot share clips", "strides", "take one of them"]),
    "join of none": (PLUGINS, ["views.groups=[[rotation, sotr]]"], ["views: 'sotr' is neither a chosen plugin"]),
    "join of a stranger": (PLUGINS, ["views.own=[qqq]"], ["views: 'qqq' is neither", "; there are rotation, rotat"]),
    "join twice": (PAIR, ["views.groups=[[stor, pace]]", "views.own=[pace]"], ["'pace' stands in more than one place"]),
    "combiner": (PLUGINS, ["combine.name=rotation"], ["combine.name: 'rotation' is not a chosen plugin that offers"]),
    "backbone": (PLUGINS, ["backbone.name=tinny"], ["tinny", "did you mean 'tiny'?"]),
    "backbone option": (
        PLUGINS, ["backbone.options.chanels=3"], ["backbone.options.chanels: 'tiny' has", "; did you mean 'channels'?"]
    ),
    "backbone's strange option": (
        PLUGINS, ["backbone.options.foo=1"], ["backbone.options.foo: 'tiny' has no such option; it takes channels"]
    ),
    "batch too large": (PLUGINS, ["batch_size=13"], ["batch_size: 13 is more than the 12 videos", "lower it to"]),
    "batch indivisible": (PLUGINS, ["optim.accumulate=3"], ["batch_size: 4 cannot be divided", "a multiple of 3"]),
    "init": (PLUGINS, ["init=/nowhere/all.pt"], ["init: /nowhere/all.pt: there is no such file or folder", START]),
    "init, weights": (PLUGINS, ["init=/nowhere.safetensors"], ["init: /nowhere.safetensors: there is no such", START]),
    "source": (PLUGINS, ["data.source=foldr"], ["no source is named 'foldr'", "did you mean 'folder'?"]),
}  # fmt: skip


@pytest.mark.parametrize("what", COMMANDS)
def test_a_run_that_cannot_be_writes_nothing(refused: Refused, tmp_path: Path, what: str) -> None:
    plugins, more, told = COMMANDS[what]
    sentence = refused(*train_words(tmp_path / "run", *more, plugins=plugins))
    for part in told:
        assert part in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is no mistake")
def test_a_gpu_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    sentence = refused(*train_words(tmp_path / "run", "device.kind=cuda"))
    assert "device.kind: cuda is asked for and torch sees no GPU" in sentence and "device.kind=auto" in sentence


def test_two_distributions_with_one_name(refused: Refused, tmp_path: Path, distribute: Callable[..., None]) -> None:
    distribute("first-echo", {"echo": "first_echo"}, {"first_echo.py": FOREIGN})
    distribute("second-echo", {"echo": "second_echo"}, {"second_echo.py": FOREIGN})
    sentence = refused(*train_words(tmp_path / "run", plugins="rotation,echo"))
    assert "'echo' is offered by" in sentence and "uninstall one of them" in sentence
    assert "first-echo" in sentence and "second-echo" in sentence


def test_an_observer_alone(refused: Refused, tmp_path: Path, distribute: Callable[..., None]) -> None:
    distribute("echo", {"echo": "echo_module"}, {"echo_module.py": FOREIGN})
    sentence = refused(*train_words(tmp_path / "run", plugins="echo"))
    assert "plugins: echo trains nothing; choose at least one plugin with an objective" in sentence


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("epochz: 3", "epochz: there is no such key; did you mean 'epochs'?"),
        ("epochs: 3\nclip: [", "is not YAML (line 2: expected the node content, but found the end); correct it"),
        ("epochs: 3\nseed: 1\n lr: 2", "is not YAML (line 3: mapping values are not allowed here); correct it"),
        ("- 1\nlr: 2", "is not YAML (line 2: what stands above cannot go on with '?'); correct it"),
        ("epochs: 3\nepochs: 4", "'epochs' stands there twice"),
        ("a list", "must hold keys and values"),
        ("seed: !!python/object/apply:os.mkdir [{place}]", "is not YAML"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_named(
    refused: Refused, tmp_path: Path, text: str | None, told: str
) -> None:
    path, place = tmp_path / "experiment.yaml", tmp_path / "made by code"
    if text is not None:
        path.write_text(text.replace("{place}", str(place)))
    sentence = refused("train", "--plugins", PLUGINS, "--config", str(path), "--run", str(tmp_path / "run"))
    assert sentence.startswith(f"{path}: ") and told in sentence
    assert not place.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["status", "{tmp}"], "{tmp}: holds no run (there is no config.yaml); give the folder of a run"),
        (["bench", "qqqq"], "no row is named 'qqqq'; there are frames_exact"),
        (["plugins", "rotatoin"], "did you mean 'rotation'?"),
        (["bench", "engine_overhed"], "did you mean 'engine_overhead'?"),
        (["data", "check", "{tmp}/nowhere"], "{tmp}/nowhere: no such file or folder"),
        (["data", "check", "{tmp}"], "{tmp}: holds no files; give a folder with videos"),
        (["data", "list", "{tmp}/nowhere"], "{tmp}/nowhere: no such file or folder"),
    ],
)
def test_other_commands(refused: Refused, tmp_path: Path, words: list[str], told: str) -> None:
    sentence = refused(*(word.format(tmp=tmp_path) for word in words))
    assert told.format(tmp=tmp_path) in sentence
    assert not sentence.startswith(("--run", "bench:"))  # a flag that is not theirs, a word that stands there already


@pytest.mark.parametrize(
    "words", [["train", "--epochs", "3"], ["plugins", "stor", "pace"], ["data", "check", "here", "there"]]
)
def test_words_too_many_show_the_usage_of_their_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    command = " ".join(words[:2] if words[0] == "data" else words[:1])
    assert capsys.readouterr().err.startswith(f"usage: vssl {command} [-h]")


@pytest.mark.parametrize("words", [["trian"], ["train", "--plugin-names", "x"], ["evaluate"], ["status", "a", "b"], []])
def test_words_that_are_no_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("usage: vssl") and "error: " in told and "Traceback" not in told


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["folder", "csv", "list", "ucf101", "hmdb51", "kinetics"])
def test_missing_and_empty_folders(refused: Refused, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        sentence = refused(*train_words(tmp_path / "run", data=f"{source}:{place}"))
        assert str(place) in sentence and "; " in sentence  # where, and what to do
    assert source in refused(*train_words(tmp_path / "run", data=source))  # which folder?
    assert not (tmp_path / "run").exists()


def test_a_plain_path_that_is_not_there_or_holds_nothing(refused: Refused, tmp_path: Path) -> None:
    sentence = refused(*train_words(tmp_path / "run", data=str(tmp_path / "nowhere")))
    assert f"{tmp_path / 'nowhere'}: no such file or folder; give a folder" in sentence
    (tmp_path / "empty").mkdir()
    assert "no video file in it or below it" in refused(*train_words(tmp_path / "run", data=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train/left/02.mp4", "has 1 columns where 2 are expected"),
        ("notes.txt 0", "/notes.txt' does not end as a video file does"),
        ("train/left/02.mp4 left", "label 'left' is not a number, unlike the labels before"),
        ("train/left/02.mp4 -7", "label -7 is negative"),
    ],
)
def test_a_bad_line_of_a_list_is_named(refused: Refused, tmp_path: Path, line: str, told: str) -> None:
    place = videos_folder()
    good = [f"{place}/train/left/00.mp4 0", f"{place}/train/right/01.mp4 1"]
    file = tmp_path / "list.csv"
    file.write_text("\n".join([*good, f"{place}/{line}", *good]) + "\n")
    sentence = refused(*train_words(tmp_path / "run", data=f"csv:{file}"))
    assert sentence.startswith(f"{file}, line 3: ") and told in sentence


def test_no_readable_video(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(VIDEOS):
        (tmp_path / "videos" / f"{number:02d}.mp4").write_bytes(b"no video at all")
    words = train_words(tmp_path / "run", "data.workers=1", data=str(tmp_path / "videos"))
    sentence = the_sentence("train", *process(*words))
    assert sentence.startswith("data: ") and "be read" in sentence and "vssl data check" in sentence
    assert f"{tmp_path}/videos/" in sentence and "is not a video that FFmpeg knows" in sentence
    assert not (tmp_path / "run" / checkpoint.NAME).exists()


# The run folder -------------------------------------------------------------------------------------------------------


def test_below_a_file_nothing_can_be_written(refused: Refused, tmp_path: Path) -> None:
    """Root may write anywhere, but not there."""
    file = tmp_path / "file"
    file.write_text("mine")
    below = refused(*train_words(file / "run"))
    assert str(file / "run") in below and "Not a directory" in below and "another --run" in below
    assert f"--run {file}: is not a folder that can be read" in refused(*train_words(file))
    assert file.read_text() == "mine"


def test_a_folder_with_something_else_in_it(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    sentence = refused(*train_words(tmp_path))
    assert "is not empty and holds no run (it has notes.txt); choose another folder" in sentence
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_another_config_shows_the_differences_and_nothing_else(refused: Refused, run: Path) -> None:
    before = contents(run)
    sentence = refused(*train_words(run, "optim.lr=0.3", "epochs=5", "plugins.rotation.layers=1", "log.every_steps=3"))
    assert f"--run {run}: holds a run with another configuration" in sentence
    for difference in ("epochs: 2 -> 5", "optim.lr: 0.1 -> 0.3", "plugins.rotation.layers: 2 -> 1"):
        assert difference in sentence
    assert "log.every_steps" not in sentence  # may differ
    assert "choose another --run" in sentence
    sentence = refused(*train_words(run, plugins="rotation,stor"))
    assert "plugins.stor.rates: absent -> " in sentence
    (run / "config.yaml").unlink()  # the checkpoint knows as well
    assert "optim.lr: 0.1 -> 0.3" in refused(*train_words(run, "optim.lr=0.3"))
    del before["config.yaml"]
    assert contents(run) == before


def test_a_damaged_config_in_the_run_folder(refused: Refused, run: Path) -> None:
    (run / "config.yaml").write_text("epochs: [")
    before = contents(run)
    assert f"{run / 'config.yaml'}: is not YAML" in refused(*train_words(run))
    assert contents(run) == before


def test_a_list_that_has_changed(refused: Refused, run: Path, tmp_path: Path) -> None:
    shutil.copytree(videos_folder(), tmp_path / "videos")
    (tmp_path / "videos/train/left/00.mp4").rename(tmp_path / "videos/train/left/99.mp4")
    before = contents(run)
    sentence = refused(*train_words(run, data=f"folder:{tmp_path / 'videos'}"))
    assert f"{run / checkpoint.NAME}: was made with another list of videos" in sentence
    assert contents(run) == before


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint(refused: Refused, run: Path, kept: float) -> None:
    path = run / checkpoint.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    before = contents(run)
    sentence = refused(*train_words(run))
    assert sentence.startswith(f"{path}: is not a whole checkpoint")
    assert "put one of checkpoints/ in its place" in sentence
    assert contents(run) == before
    shutil.copyfile(run / "checkpoints/epoch_0001.pt", path)  # as it says
    assert main(train_words(run)) == 0


class Trap:
    """What runs a command as soon as somebody unpickles it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_not_executed(refused: Refused, run: Path, tmp_path: Path, how: str) -> None:
    place, path = tmp_path / "made by code", run / checkpoint.NAME
    state = {**checkpoint.load(path), "order": Trap(place)}
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    before = contents(run)
    sentence = refused(*train_words(run))
    assert sentence.startswith(f"{path}: ") and "code" in sentence and "was not loaded" in sentence
    assert not place.exists()
    sentence = refused(*train_words(tmp_path / "new", f"init={path}"))
    assert "was not loaded" in sentence and not place.exists()
    assert contents(run) == before
    if how == "torch":  # the trap works
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert place.is_dir()


@pytest.mark.parametrize("kind", ["shape", "missing", "extra"])
def test_a_checkpoint_of_another_architecture(refused: Refused, run: Path, kind: str) -> None:
    path = run / checkpoint.NAME
    state = checkpoint.load(path)
    name = next(name for name, value in state["ensemble"].items() if name.startswith("backbone.") and value.ndim == 5)
    weight = state["ensemble"].pop(name)
    if kind == "shape":
        state["ensemble"][name] = torch.zeros(1, *weight.shape)
    elif kind == "extra":
        state["ensemble"].update({name: weight, f"{name}.more": weight})
    checkpoint.save(path, state)
    before = contents(run)
    sentence = refused(*train_words(run))
    assert sentence.startswith(f"{path}: holds another architecture ({name}")
    assert "1 difference)" in sentence and "use the configuration it was made with" in sentence
    assert contents(run) == before


def test_a_file_that_is_no_checkpoint_of_ours(refused: Refused, run: Path) -> None:
    torch.save({"model": torch.zeros(3)}, run / checkpoint.NAME)
    assert "is not a checkpoint of this version of vssl (format 1)" in refused(*train_words(run))


def test_init_from_another_backbone(refused: Refused, run: Path, tmp_path: Path) -> None:
    state = checkpoint.load(run / checkpoint.NAME)
    state["ensemble"] = {f"other.{name}": value for name, value in state["ensemble"].items()}
    checkpoint.save(tmp_path / "other.pt", state)
    sentence = refused(*train_words(tmp_path / "new", f"init={tmp_path / 'other.pt'}"))
    assert sentence.startswith(f"init: {tmp_path / 'other.pt'}: holds nothing that fits this backbone (")
    assert "is missing, " in sentence and sentence.endswith(" differences); choose weights of the same backbone")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("empty", "holds no run that has saved"),
        ("config.yaml", "is not a whole checkpoint (it is cut short, or another kind of file)"),
        ("cut.safetensors", "is not a whole safetensors file (it is cut short, or another kind of file)"),
    ],
)
def test_init_from_what_holds_no_weights(refused: Refused, tmp_path: Path, name: str, told: str) -> None:
    """Whatever it is, it is yours: nobody tells you to delete it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.yaml").write_text("backbone:\n  options: {}\n  name: tiny\n")
    (tmp_path / "cut.safetensors").write_bytes(b"half")
    path = tmp_path / name
    assert refused(*train_words(tmp_path / "new", f"init={path}")) == f"init: {path}: {told}; {START}"


@pytest.mark.parametrize("moment", ["in an epoch", "at its end"])
def test_a_disk_that_is_full_while_saving(run: Path, finished: Path, moment: str) -> None:
    """The kernel refuses what goes beyond a limit; once there is room, the same command ends as if nothing had been."""
    path = run / checkpoint.NAME
    before, size = contents(run), path.stat().st_size
    words = train_words(run, *(["checkpoint.every_steps=1"] if moment == "in an epoch" else []))
    sentence = the_sentence("train", *process(*words, limit=size // 2 if moment == "in an epoch" else 16384))
    full = path if moment == "in an epoch" else run / "backbone.safetensors"
    assert sentence.startswith(f"{full}: cannot be written (")
    assert "free space or choose another --run, and start again" in sentence
    after = contents(run)
    assert {name for name in after if after[name] != before.get(name)} <= {"config.yaml", "metrics.jsonl"}
    assert not [name for name in after if name.endswith(".tmp")]
    code, told = process(*train_words(run))
    assert code == 0, told
    one, other = checkpoint.load(path), checkpoint.load(finished / checkpoint.NAME)
    assert_equal(one["ensemble"], other["ensemble"])
    assert_equal(one["optimizer"], other["optimizer"])


# Evaluations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluations", "more", "told"),
    [
        ("", [], "--evaluations: none is named; for example --evaluations retrieval,linear"),
        ("retreival", [], "no plugin named 'retreival' is installed; did you mean 'retrieval'?"),
        ("rotation", [], "--evaluations: 'rotation' is no evaluation"),
        ("retrieval,retrieval", [], "'retrieval' is named twice"),
        ("retrieval", ["plugins.retrieval.k=[1]"], "plugins.retrieval.k: there is no such key; did you mean 'ks'?"),
        ("retrieval", ["plugins.retrieval.clips=0"], "plugins.retrieval.clips: input should be greater than"),
        ("retrieval", ["plugins.linear.epochs=3"], "plugin 'linear' is not chosen"),
        ("retrieval", ["seed=7"], "'seed=7': what was trained is not changed by judging it; an evaluation reads"),
        ("retrieval", ["plugins.rotation.layers=1"], "what was trained is not changed by judging it"),
        ("retrieval", ["--data", ""], "--data: is empty; give SOURCE"),
        ("retrieval", ["data.worker=3"], "data.worker: there is no such key; did you mean 'workers'?"),
        ("retrieval", ["--data", "folder:/nowhere"], "/nowhere: no such folder"),
        (
            "retrieval",
            ["--data", "my data=folder:/nowhere"],
            "'my data' cannot name a data set; give it a name of letters",
        ),
        ("retrieval", ["--data", "ours=foldr:/nowhere"], "no source is named 'foldr'"),
    ],
)
def test_an_evaluation_that_cannot_be(
    refused: Refused, finished: Path, evaluations: str, more: list[str], told: str
) -> None:
    before = contents(finished)
    assert told in refused("evaluate", "--run", str(finished), "--evaluations", evaluations, *more)
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_an_evaluation_of_no_run(refused: Refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    sentence = refused("evaluate", "--run", str(tmp_path / name), "--evaluations", "retrieval")
    assert f"--run {tmp_path / name}: holds no run (there is no config.yaml); give the folder of a run" in sentence


@pytest.mark.parametrize("evaluation", ["retrieval", "linear"])
def test_a_labelled_protocol_on_videos_without_labels(
    refused: Refused, finished: Path, tmp_path: Path, evaluation: str
) -> None:
    for side in ("train", "test"):
        shutil.copytree(videos_folder() / side / "left", tmp_path / "videos" / side)
    told = refused("evaluate", "--run", str(finished), "--evaluations", evaluation, "--data", str(tmp_path / "videos"))
    assert f"evaluation '{evaluation}': needs labels" in told and "give a labelled source with --data" in told


def test_weights_that_cannot_be_evaluated(refused: Refused, run: Path) -> None:
    path = run / "backbone.safetensors"
    words = ["evaluate", "--run", str(run), "--evaluations", "retrieval"]
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: is not a whole safetensors file" in refused(*words)
    path.unlink()
    assert f"{path}: there are no weights yet" in refused(*words)


def test_weights_of_another_backbone_are_not_evaluated(refused: Refused, run: Path) -> None:
    """In words of ours, not of torch."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["backbone"]["options"] = {"channels": [8, 16, 16, 16, 32]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    sentence = refused("evaluate", "--run", str(run), "--evaluations", "retrieval")
    assert sentence.startswith(f"{run / 'backbone.safetensors'}: holds another architecture (net.")
    assert " is needed, " in sentence and sentence.endswith("; leave the run's backbone as its config.yaml has it")


def test_more_neighbours_than_videos(refused: Refused, finished: Path) -> None:
    words = ["evaluate", "--run", str(finished), "--evaluations", "retrieval", "plugins.retrieval.ks=[1, 5000]"]
    told = "plugins.retrieval.ks: there are no 5000 neighbours among 12 training videos; choose numbers up to 12"
    assert refused(*words) == told


# The demo's videos ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_s_videos_go_into_an_empty_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "demo"
    for told in ("written", "is there"):
        assert main(["data", "demo", str(place)]) == 0
        assert capsys.readouterr().out == f"{place}: {told}\n"
    assert main(["data", "list", f"demo:{place}"]) == 0


def test_the_demo_s_videos_do_not_go_into_a_folder_of_yours(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert str(tmp_path) in refused("data", "demo", str(tmp_path))
    assert contents(tmp_path) == {"notes.txt": b"mine"}


# A real process -------------------------------------------------------------------------------------------------------


def test_the_console_command_says_it_once_and_ends_with_2(tmp_path: Path) -> None:
    sentence = the_sentence("train", *process(*train_words(tmp_path / "run", plugins="rotatoin")))
    assert "did you mean 'rotation'?" in sentence
