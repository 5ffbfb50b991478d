"""A stranger's plugin: built into a wheel, installed into a fresh environment beside our own wheel, trained by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vssl_core.testing import check_plugin, videos

ROOT = Path(__file__).resolve().parent.parent
ECHO = Path(__file__).resolve().parent / "thirdparty" / "vssl_echo"
INGREDIENTS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "vssl_core", "plugins")
FEW_STEPS = ("epochs=1", "batch_size=4", "clip.size=32", "data.workers=0")
LEFT_OVERS = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


def run(*command: str | Path, where: Path) -> str:
    """What a command prints; it must succeed. Nothing of this process's own path reaches it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=where,
        capture_output=True,
        text=True,
        env={**environment, "COLUMNS": "160"},
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wheel_of(source: Path, target: Path) -> Path:
    """A distribution built as `pip install` builds it, without network."""
    quiet = ("--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", target)
    run(sys.executable, "-m", "pip", "wheel", *quiet, source, where=target.parent)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment with two wheels, the stranger's and ours; the rest is borrowed.

    A plain line in a .pth file shows it the packages that are installed here, and not the tree that they may point to.
    """
    place = tmp_path_factory.mktemp("environment")
    own = place / "vssl"
    own.mkdir()
    for name in INGREDIENTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, own / name, **({"ignore": LEFT_OVERS} if copy is shutil.copytree else {}))
    shutil.copytree(ECHO, place / "vssl_echo", ignore=LEFT_OVERS)
    for name in ("own_wheel", "echo_wheel"):
        (place / name).mkdir()
    wheels = wheel_of(own, place / "own_wheel"), wheel_of(place / "vssl_echo", place / "echo_wheel")
    run(sys.executable, "-m", "venv", "--without-pip", place / "fresh", where=place)
    programs = place / "fresh" / "bin"
    (packages,) = (place / "fresh" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    install = ("--python", programs / "python", "install", "--no-index", "--no-deps", "--ignore-installed")
    run(sys.executable, "-m", "pip", *install, *wheels, where=place)
    return programs


@pytest.fixture(scope="module")
def clips_of_a_stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes of tiny videos."""
    place = tmp_path_factory.mktemp("clips")
    for number, path in enumerate(sorted(videos.folder().glob("*.mp4"))):
        (place / f"class{number % 2}").mkdir(exist_ok=True)
        shutil.copy(path, place / f"class{number % 2}" / path.name)
    return place


def commands_of_the_readme() -> list[list[str]]:
    """The commands of the README's code block."""
    (block,) = re.findall(r"```sh\n(.*?)```", (ECHO / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line.split() for line in block.splitlines()]


def test_it_keeps_its_promises_as_it_lies_in_the_tree(distribute, monkeypatch):
    distribute("vssl-echo", {"echo": "vssl_echo"}, {})
    monkeypatch.syspath_prepend(ECHO)
    check_plugin("echo")


def test_its_readme_says_what_this_file_does():
    install, *others = commands_of_the_readme()
    assert install == ["pip", "install", "."]
    assert [command[:3] for command in others] == [["vssl", "train", "--plugins"]] * len(others)
    assert ["vssl", "train", "--plugins", "echo"] in others


@pytest.mark.slow
def test_everything_comes_from_the_wheels(environment, tmp_path):
    program = "import vssl_core, vssl_echo, vssl_core.testing; print(vssl_core.__file__, vssl_echo.__file__)"
    for path in run(environment / "python", "-c", program, where=tmp_path).split():
        assert Path(path).is_relative_to(environment.parent), path


@pytest.mark.slow
def test_its_readmes_commands_train_it_by_name(environment, clips_of_a_stranger, tmp_path):
    for number, (program, *words) in enumerate(commands_of_the_readme()[1:]):
        folder = tmp_path / f"run{number}"
        data = ("--data", f"folder:{clips_of_a_stranger}", "--run", folder)
        run(environment / program, *words, *data, *FEW_STEPS, where=tmp_path)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        assert all(line["echo/colour"] > 0 for line in lines)
        assert (folder / "backbone.safetensors").exists()


@pytest.mark.slow
def test_it_is_listed_and_shown(environment, tmp_path):
    listed = run(environment / "vssl", "plugins", where=tmp_path)
    assert re.search(r"echo\W+objective\W+vssl-echo 0\.1\.0", listed), listed
    assert re.search(r"rotation\W+objective\W+vssl \d", listed), listed
    shown = run(environment / "vssl", "plugins", "echo", where=tmp_path)
    assert "echo, objective, from vssl-echo 0.1.0 (vssl_echo)" in shown
    assert "moments" in shown and "evenly spread moments of the clip" in shown


@pytest.mark.slow
def test_its_own_tests_pass_there(environment, tmp_path):
    shutil.copytree(ECHO / "tests", tmp_path / "tests")
    said = run(environment / "python", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", where=tmp_path)
    assert "3 passed" in said
