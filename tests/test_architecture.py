"""The house stays as docs/architecture.md describes it: directions, names, hooks, sizes, flags, costs of imports."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import vssl_core
from vssl_core import cli, hookspecs
from vssl_core.hookspecs import hookimpl
from vssl_core.plugins import new_manager

ROOT = Path(__file__).parent.parent
CORE = ROOT / "vssl_core"
PLUGINS = ROOT / "plugins"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(hookspecs) if name.startswith("vssl_")]


def sources(folder: Path) -> list[Path]:
    """The Python files below a folder, tests left out."""
    return sorted(path for path in folder.rglob("*.py") if "tests" not in path.relative_to(folder).parts)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path) -> str:
    """A path as messages quote it."""
    return str(path.relative_to(ROOT))


# Directions -----------------------------------------------------------------------------------------------------------


def levels() -> dict[str, int]:
    """{room: its row in the table of rooms}; a folder's name ends in '/'."""
    rows = PAGE.partition("## Rooms")[2].partition("\n\nOutside")[0].splitlines()
    cells = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows if row.startswith("| `")]
    return {room: number for number, names in enumerate(cells) for room in names}


def room(module: str) -> str:
    """The room that a module of `vssl_core` belongs to, as the table writes it."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__.py"
    return f"{parts[0]}/" if (CORE / parts[0]).is_dir() else f"{parts[0]}.py"


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports when it runs, inside functions too; names for type checkers do not count."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}: imports are written in full"
            base = node.module or ""
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else base for name in inside)
        waiting.extend(ast.iter_child_nodes(node))


def _is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return name.startswith("vssl_core.") and (place.with_suffix(".py").exists() or place.is_dir())


def test_the_page_names_every_room() -> None:
    there = {path.name + "/" if path.is_dir() else path.name for path in CORE.iterdir()}
    rooms = {name for name in there if name.endswith((".py", "/")) and name != "__pycache__/"}
    assert set(levels()) == rooms


@pytest.mark.parametrize("path", sources(CORE), ids=shown)
def test_imports_point_one_way(path: Path) -> None:
    level = levels()
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = room(module)
    if mine == "__init__.py":
        return
    for name in imported(path):
        if name.split(".")[0] == "vssl_core" and name != "vssl_core":
            theirs = room(name)
            assert level[theirs] <= level[mine], f"{shown(path)} imports {name}: {theirs} stands on {mine}"
            assert (mine, theirs) != ("data/", "nets/"), f"{shown(path)} imports {name}: data knows no nets"


def test_the_checks_see_through_functions_and_type_checking(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from vssl_core.run.engine import Run\n"
        "def later():\n    from vssl_core import cli\n    import vssl_core.nets.ema\n"
    )
    assert sorted(imported(path)) == ["typing", "vssl_core.cli", "vssl_core.nets.ema"]


@pytest.mark.parametrize("path", sources(PLUGINS), ids=shown)
def test_plugins_import_only_the_door(path: Path) -> None:
    own = path.relative_to(PLUGINS).parts[0]
    for node in ast.walk(tree(path)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            top = module.split(".")[0]
            assert top == module or top != "vssl_core", f"{shown(path)} imports {module}: plugins import only vssl_core"
            assert not top.startswith("vssl_") or top in ("vssl_core", own), f"{shown(path)} imports {module}"
        if isinstance(node, ast.ImportFrom) and node.module == "vssl_core":
            strange = [alias.name for alias in node.names if alias.name not in vssl_core.__all__]
            assert not strange, f"{shown(path)}: the door does not offer {', '.join(strange)}"


# Names ----------------------------------------------------------------------------------------------------------------


def plugin_names() -> set[str]:
    """The entry points of this distribution."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options.entry_points"]["vssl"].splitlines()
    return {line.partition("=")[0].strip() for line in lines if "=" in line}


def names_a_plugin(literal: str, names: set[str]) -> bool:
    """Whether a text is a plugin's name, or a list of such."""
    return bool(literal) and all(part.strip() in names for part in literal.split(","))


# Words of others that happen to be a plugin's name too.
MEANT = {
    "vssl_core/nets/fingerprint.py": {"linear"},  # what torch calls an operator
    "vssl_core/bench/steps.py": {"stor", "pace", "rotation", "byol", "statistics", "conflict"},  # what rows measure
}


@pytest.mark.parametrize("path", sources(CORE), ids=shown)
def test_the_core_names_no_plugin(path: Path) -> None:
    names = plugin_names() - MEANT.get(shown(path), set())
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            where = f"{shown(path)}, line {node.lineno}"
            assert not names_a_plugin(node.value, names), f"{where}: '{node.value}' is a plugin"


def test_what_counts_as_naming_a_plugin() -> None:
    names = {"stor", "pace"}
    assert names_a_plugin("stor", names) and names_a_plugin("stor, pace", names)
    assert not names_a_plugin("restored", names) and not names_a_plugin("for example stor,pace", names)
    assert not names_a_plugin("", names)


@pytest.mark.parametrize("folder", [CORE, PLUGINS, ROOT / "tests", ROOT / "tools"], ids=lambda folder: folder.name)
def test_no_drawer_for_everything(folder: Path) -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common", "base", "tools", "stuff"}
    found = [shown(path) for path in folder.rglob("*") if path.stem in drawers and "__pycache__" not in path.parts]
    assert not found, f"name them after their subject: {found}"


def words_of_other_places() -> re.Pattern[str]:
    """What belongs to the machine that the project is made on, and not to the project."""
    folders = ["/wo" + "rk/", "/fa" + "rm/", "/ro" + "ot/", "/tmp/br" + "ief", "/opt/py" + "pi", "shar" + "ed/"]
    notes = [rf"\b{name}\.m" + r"d\b" for name in ("desi" + "gn", "meth" + "ods", "anch" + "ors", "pe" + "rf")]
    habits = [r"\b(?:this|another|next|earlier) sess" + r"ion\b", r"\bissue \d", "work" + "place"]
    return re.compile("|".join([*folders, *notes, *habits]))


def tracked() -> list[Path]:
    """The files that git knows."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_project_speaks_of_itself_alone() -> None:
    pattern, found = words_of_other_places(), []
    for path in tracked():
        if path.suffix in (".png", ".mp4", ".avi"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            clips = shown(path) == ".ci/run" and "VSSL_CLIPS" in path.read_text()  # looks for clips beside the checkout
            if (match := pattern.search(line)) and not clips:
                found.append(f"{shown(path)}, line {number}: '{match[0]}'")
    assert not found, "\n".join(found)


# Sizes ----------------------------------------------------------------------------------------------------------------

USUAL = 320  # lines
# What may be longer, and how long. One more line here is a reason to ask whether a file is two rooms.
LONG = {
    "vssl_core/config.py": 450,
    "vssl_core/run/engine.py": 450,
    "vssl_core/windows.py": 400,
}


def test_files_stay_readable() -> None:
    files = [*sources(CORE), *sources(PLUGINS)]
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    too_long = {name: length for name, length in lengths.items() if length > LONG.get(name, USUAL)}
    assert not too_long, f"longer than {USUAL} lines, or than LONG allows; split by subject: {too_long}"
    stale = [name for name in LONG if lengths.get(name, 0) <= USUAL]
    assert not stale, f"take out of LONG what has become short: {stale}"


def test_functions_stay_short() -> None:
    lengths = []
    for path in [*sources(CORE), *sources(PLUGINS)]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                lengths.append(((node.end_lineno or 0) - node.lineno + 1, f"{shown(path)}: {node.name}"))
    lengths.sort()
    assert lengths[len(lengths) // 2][0] <= 12, "the median function has grown"
    longest = [name for length, name in lengths if length > 80]
    assert not longest, f"longer than 80 lines: {longest}"


# Hooks ----------------------------------------------------------------------------------------------------------------


def signature(hook: str) -> str:
    """A hook as the page writes it."""
    return f"{hook}{inspect.signature(getattr(hookspecs, hook))}".replace("'", "")


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    headings = re.findall(r"^#### `(vssl_.*)`$", PAGE.partition("## Hooks")[2], re.MULTILINE)
    assert headings == [signature(hook) for hook in HOOKS]


def test_the_table_of_methods_speaks_of_what_there_is() -> None:
    """Every request in it is one, and every hook and class in it exists."""
    rows = [row for row in PAGE.partition("## Methods")[2].splitlines() if row.startswith("| ") and "`Request(" in row]
    assert len(rows) >= 8, "the six methods, and the frameworks that do not just say 'the pair'"
    names = {name: getattr(vssl_core, name) for name in vssl_core.__all__}
    stand_ins = {"rates": (0.2, 1.0), "paces": (1, 2), "fixations": 5, "n": 2}
    for row in rows:
        for span in re.findall(r"`([^`]+)`", row):
            assert not (word := re.match(r"vssl_\w+$", span)) or word[0] in HOOKS, span
            if span.startswith("Request("):
                eval(span, names, stand_ins).check("docs/architecture.md")
            for name in re.findall(r"\b[A-Z][a-z]+[A-Za-z]*(?=\()|^[A-Z][a-z]+$", span):
                assert name in names or name == "None", f"the door has no {name}, which the table of methods names"


def test_every_hook_has_a_docstring() -> None:
    assert all((getattr(hookspecs, hook).__doc__ or "").strip().endswith(".") for hook in HOOKS)


Distribute = Callable[..., None]
LISTENER = """
from torch import nn
from vssl_core import Backbone, Splits, Videos, hookimpl

heard = []

class Small(Backbone):
    def __init__(self):
        super().__init__("small", {"stage1": 4})
        self.layer = nn.Conv3d(3, 4, 1)
    def forward(self, clip):
        return {"stage1": self.layer(clip)}

def left(root, options):
    heard.append("source")
    names = [f"train/left/{number:02d}.mp4" for number in range(0, 12, 2)]
    test = Videos.build(["test/left/00.mp4", "test/right/01.mp4"], [0, 1], ("left", "right"), root)
    return Splits(Videos.build(names, [0] * 6, ("left", "right"), root), test, "left")

def build():
    heard.append("backbone")
    return Small()

@hookimpl
def vssl_backbones():
    return {"small": build}

@hookimpl
def vssl_sources():
    return {"left": left}

@hookimpl
def vssl_run_start(run):
    heard.append(f"run_start {run.step}")

@hookimpl
def vssl_epoch_start(run):
    heard.append(f"epoch_start {run.epoch}")

@hookimpl
def vssl_epoch_order(run):
    heard.append(f"epoch_order {run.epoch}")
    return [4, 1, 4, 0] if run.epoch == 0 else None

@hookimpl
def vssl_forward_end(run, losses, weights, shared):
    heard.append(f"forward_end {sorted(losses)} {weights} {len(shared.features)}")

@hookimpl
def vssl_backward_end(run):
    heard.append(f"backward_end {run.step} {all(p.grad is not None for p in run.backbone.parameters())}")

@hookimpl
def vssl_step_end(run, report):
    heard.append(f"step_end {report.step} {sorted(report.kept['teller']['video'].tolist())}")

@hookimpl
def vssl_epoch_end(run):
    heard.append(f"epoch_end {run.epoch}")

@hookimpl
def vssl_run_end(run, error):
    heard.append(f"run_end {error}")
"""
TELLER = """
from vssl_core import Combiner, Evaluation, Needs, Objective, Observer, Request, Result, Terms, head, hookimpl

class Teller(Objective):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.head = head(context.feature_dim, 1)
    def requests(self):
        return {"clip": Request()}
    def forward(self, batch):
        (view,) = batch["clip"]
        return Terms({"size": self.head(view.features.vector).square().mean()}, keep={"video": batch.index})

class Twice(Combiner):
    def forward(self, losses, weights, shared):
        return 2 * sum(losses.values())

class Count(Evaluation):
    def needs(self):
        return Needs(clips=1, labels=False)
    def run(self, features):
        return Result({"videos": float(len(features.splits["train"].labels))}, {"evaluation": "count"})

@hookimpl
def vssl_objective():
    return Teller

@hookimpl
def vssl_combine():
    return Twice

class Note(Observer):
    @hookimpl
    def vssl_backward_end(self, run):
        run.note(f"{self.name}/step", run.step)

@hookimpl
def vssl_observer():
    return Note

@hookimpl
def vssl_evaluation():
    return Count
"""


def test_every_hook_is_asked_and_announced_in_its_order(distribute: Distribute, tmp_path: Path) -> None:
    """All fourteen, offered by a stranger's distribution, in a run of two epochs."""
    from small_runs import videos_folder

    modules = {"listener": LISTENER, "teller": TELLER}
    distribute("stranger", {name: name for name in modules}, {f"{name}.py": code for name, code in modules.items()})
    run = str(tmp_path / "run")
    words = ["--data", f"left:{videos_folder()}", "backbone.name=small", "combine.name=teller", "epochs=2"]
    words += ["batch_size=2", "clip.frames=2", "clip.size=16", "data.workers=0", "log.tensorboard=false"]
    assert cli.main(["train", "--plugins", "listener,teller", "--run", run, *words]) == 0
    heard = sys.modules["listener"].heard
    news = [line for line in heard if line not in ("source", "backbone")]
    assert {"source", "backbone"} < set(heard)
    forward = "forward_end ['teller'] {'teller': 1.0} 1"
    assert news[:10] == [
        "run_start 0", "epoch_start 0", "epoch_order 0", forward, "backward_end 0 True", "step_end 1 [1, 4]",
        forward, "backward_end 1 True", "step_end 2 [0, 4]", "epoch_end 1",
    ]  # fmt: skip
    assert [line.split()[0] for line in news[10:]] == [
        "epoch_start", "epoch_order", *["forward_end", "backward_end", "step_end"] * 3, "epoch_end", "run_end",
    ]  # fmt: skip
    assert news[-1] == "run_end None"
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(step["loss"] == pytest.approx(2 * step["teller/size"]) for step in steps)
    assert [step["teller/step"] for step in steps] == [0, 1, 2, 3, 4]  # what the observer noted
    assert cli.main(["evaluate", "--run", run, "--evaluations", "teller"]) == 0
    assert json.loads((tmp_path / "run/evaluations/teller.json").read_text())["metrics"] == {"videos": 6.0}
    defined = set(re.findall(r"def (vssl_\w+)", LISTENER + TELLER))
    assert defined == set(HOOKS), "this test must hear every hook there is"


class Listener:
    """Hears the end of every step."""

    @hookimpl
    def vssl_step_end(self, run: object, report: object) -> None:
        pass


def test_an_announcement_costs_microseconds() -> None:
    """Under ten, with three who listen; the least of many repeats, so that a busy machine changes nothing."""
    manager = new_manager()
    for number in range(3):
        manager.register(Listener(), f"listener {number}")
    seconds = min(timeit.repeat(lambda: manager.hook.vssl_step_end(run=None, report=None), number=500, repeat=40)) / 500
    assert seconds < 10e-6, f"an announcement takes {1e6 * seconds:.1f} microseconds"


# The command line -----------------------------------------------------------------------------------------------------

FLAGS = {
    "train": "--plugins --config --data --run --dry-run --launch overrides*",
    "evaluate": "--run! --evaluations! --baseline --data overrides*",
    "data check": "place --out --workers --seconds",
    "data list": "place",
    "data demo": "folder?",
    "data prepare": "place --out! --workers",
    "data flow": "place --out! --method --stride --blocks --workers",
    "data labels": "place --plugin! --out --videos --against overrides*",
    "plugins": "name?",
    "doctor": "",
    "bench": "names* --clips --json",
    "sweep": "file --run --data --evaluation-data --parallel --launch --retry-failed --dry-run --measure overrides*",
    "status": "run",
    "demo": "--run overrides*",
}


def flags(parser: argparse.ArgumentParser, name: str = "") -> dict[str, str]:
    """{command: its flags in order}; ! must be given, ? and * may be left out."""
    found, words = {}, []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, inner in action.choices.items():
                found |= flags(inner, f"{name} {command}".strip())
        elif not isinstance(action, argparse._HelpAction):
            optional = str(action.nargs) if action.nargs in ("*", "?") else ""
            flag = action.option_strings[-1] if action.option_strings else action.dest
            words.append(flag + ("!" if action.option_strings and action.required else optional))
    return found or {name: " ".join(words)}


def test_the_command_line_is_frozen() -> None:
    """A new flag is a decision: most of what one could want is a key of the configuration."""
    assert flags(cli.parser()) == FLAGS


# What an import costs -------------------------------------------------------------------------------------------------

HEAVY = {"torch", "torchvision", "pytorchvideo", "fvcore", "av", "cv2", "faiss", "sklearn", "tensorboard", "numpy"}


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGINS}"}  # the tree, installed or not
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heavy_after(statement: str) -> set[str]:
    """The heavy libraries that a statement brings in."""
    return set(json.loads(fresh(f"{statement}; import json, sys; print(json.dumps([*sys.modules]))"))) & HEAVY


def test_the_door_is_light() -> None:
    assert heavy_after("import vssl_core; vssl_core.hookimpl; vssl_core.ConfigError; vssl_core.Request") == set()
    assert heavy_after("import vssl_core; vssl_core.Objective") >= {"torch"}, "the check sees what is heavy"


def test_the_command_line_is_light() -> None:
    assert heavy_after("from vssl_core import cli; cli.parser()") == set()


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PLUGINS.glob("vssl_*/__init__.py")))
def test_a_plugin_is_light_until_it_is_used(name: str) -> None:
    assert heavy_after(f"import {name}") == set()


def test_importing_takes_a_fraction_of_what_torch_takes() -> None:
    """`import vssl_core`, and all that its door offers on top of torch: the least of three, against torch's own."""
    code = (
        "from time import perf_counter as now; a = now(); import vssl_core; b = now(); import torch; c = now();"
        "[getattr(vssl_core, name) for name in vssl_core.__all__]; d = now(); print(b - a, c - b, d - c)"
    )
    times = [[float(number) for number in fresh(code).split()] for _ in range(3)]
    door, torch, all_of_it = (min(column) for column in zip(*times, strict=True))
    assert door < 0.02 * torch, f"import vssl_core takes {door:.3f} s where torch takes {torch:.2f} s"
    assert all_of_it < torch, f"what the door offers takes {all_of_it:.2f} s where torch takes {torch:.2f} s"


def test_every_name_of_the_door_is_there() -> None:
    assert all(getattr(vssl_core, name) is not None for name in vssl_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vssl_core.Nothing  # noqa: B018
