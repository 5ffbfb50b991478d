"""What is installed is what is in the tree: the built wheel, the entry points, the pinned versions, the licence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# What building reads; tests, docs and configs have no say in it.
INGREDIENTS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "vssl_core", "plugins")
EXTRAS_OF_MAKE = ("cpu", "flow", "test")


@pytest.fixture(scope="module")
def settings() -> ConfigParser:
    """setup.cfg, parsed."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Our wheel, built without network from a copy of the tree, so that no leftover of an earlier build gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in INGREDIENTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, f"the wheel cannot be built:\n{done.stdout}\n{done.stderr}"
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def packages_in_tree() -> dict[str, Path]:
    """Every importable package of ours, by dotted name, with its folder."""
    found = {}
    for home, pattern in ((ROOT, "vssl_core"), (ROOT / "plugins", "vssl_*")):
        for top in sorted(home.glob(pattern)):
            for marker in sorted(top.rglob("__init__.py")):
                if "tests" in marker.relative_to(home).parts:
                    continue  # tests are no package of ours, whatever lies in them
                found[".".join(marker.parent.relative_to(home).parts)] = marker.parent
    return found


def plugin_folders() -> set[str]:
    """The names of the plugins' packages: vssl_stor, vssl_pace, ..."""
    return {folder.name for folder in (ROOT / "plugins").glob("vssl_*") if (folder / "__init__.py").is_file()}


def lines(text: str) -> list[str]:
    """The non-empty lines of a value in setup.cfg."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def add_to(place: str, missing: list[str]) -> str:
    """The sentence that says which lines are missing where; empty where none is."""
    return f"\n{place} lacks; add:\n" + "\n".join(f"    {line}" for line in missing) if missing else ""


def take_from(place: str, stale: list[str]) -> str:
    """The sentence that says which lines name what is not there; empty where none does."""
    return f"\n{place} names what the tree does not have; remove:\n" + "\n".join(stale) if stale else ""


def accept(problems: str) -> None:
    """Fail with the problems as they are, ready to be copied."""
    if problems:
        pytest.fail(problems, pytrace=False)


def test_every_package_of_the_tree_is_listed(settings: ConfigParser) -> None:
    listed, there = set(lines(settings["options"]["packages"])), set(packages_in_tree())
    place = "setup.cfg, [options] packages,"
    problems = add_to(place, sorted(there - listed)) + take_from(place, sorted(listed - there))
    accept(problems)


def test_every_plugin_has_an_entry_point_of_its_name(settings: ConfigParser) -> None:
    declared = set(lines(settings["options.entry_points"]["vssl"]))
    expected = {f"{folder.removeprefix('vssl_')} = {folder}" for folder in plugin_folders()}
    place = "setup.cfg, [options.entry_points] vssl,"
    problems = add_to(place, sorted(expected - declared)) + take_from(place, sorted(declared - expected))
    accept(problems)


def test_wheel_holds_every_file_of_every_package_and_no_test(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = set()
    for name, folder in packages_in_tree().items():
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".pyc":
                expected.add("/".join([*name.split("."), file.name]))
    missing = sorted(expected - packed)
    assert not missing, f"the wheel lacks {missing}: name them in setup.cfg, packages or package_data"
    assert not packed - expected, f"the wheel holds what is in no package: {sorted(packed - expected)}"
    assert "vssl_core/py.typed" in packed
    assert not [name for name in packed if "/tests/" in name or name.startswith("tests/")]


def test_wheel_offers_every_plugin_and_the_command(wheel: zipfile.ZipFile) -> None:
    (declaration,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    parser = ConfigParser()
    parser.read_string(wheel.read(declaration).decode())
    assert dict(parser["console_scripts"]) == {"vssl": "vssl_core.cli:main"}
    assert set(parser["vssl"].values()) == plugin_folders()
    packed = set(wheel.namelist())
    for module in [*parser["vssl"].values(), "vssl_core.cli"]:
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & packed, f"entry point {module}: the wheel has no such module"


def test_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    (packed,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(packed).decode() == text
    (about,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(about).decode().splitlines()


def test_installed_distribution_is_this_tree(settings: ConfigParser) -> None:
    """Entry points are read at installation: an environment made before a plugin was added does not know it."""
    offered = {point.value for point in metadata.distribution("vssl").entry_points if point.group == "vssl"}
    declared = {line.split("=")[1].strip() for line in lines(settings["options.entry_points"]["vssl"])}
    assert offered == declared, f"installed {sorted(offered)}, declared {sorted(declared)}; run: pip install -e ."


def pinned_versions() -> dict[str, str]:
    """The versions of constraints.txt by canonical name; any other kind of line is an error."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, version = line.strip().partition("==")
            assert equals and version and "+" not in version, f"constraints.txt: not of the form name==1.2.3: {line}"
            assert canonicalize_name(name) not in pins, f"constraints.txt: {name} is pinned twice"
            pins[canonicalize_name(name)] = version
    return pins


def our_requirements(settings: ConfigParser, extras: tuple[str, ...]) -> list[Requirement]:
    """What setup.cfg asks for, with these extras."""
    texts = lines(settings["options"]["install_requires"])
    for extra in extras:
        texts += lines(settings["options.extras_require"][extra])
    return [Requirement(text) for text in texts]


def installed_closure(requirements: list[Requirement]) -> dict[str, tuple[str, bool]]:
    """All that the requirements bring here: canonical name -> (name==version, whether a requirer pins it exactly)."""
    waiting, found, visited = list(requirements), {}, set()
    while waiting:
        wanted = waiting.pop()
        name, distribution = canonicalize_name(wanted.name), metadata.distribution(wanted.name)
        exact = any(clause.operator == "==" for clause in wanted.specifier) or found.get(name, ("", False))[1]
        version = distribution.version.partition("+")[0]  # torch's flavour is the machine's affair
        found[name] = (f"{distribution.metadata['Name']}=={version}", exact)
        if (name, frozenset(wanted.extras)) not in visited:
            visited.add((name, frozenset(wanted.extras)))
            waiting += [need for need in map(Requirement, distribution.requires or []) if _applies(need, wanted.extras)]
    return found


def _applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""})


def test_constraints_pin_everything_that_make_installs(settings: ConfigParser) -> None:
    pins = pinned_versions()
    installed = installed_closure(our_requirements(settings, EXTRAS_OF_MAKE))
    # What torch's CUDA build brings differs between machines, and torch itself says which versions.
    missing = [line for name, (line, exact) in sorted(installed.items()) if name not in pins and not exact]
    accept(add_to("constraints.txt", missing))


def test_constraints_agree_with_setup_cfg(settings: ConfigParser) -> None:
    pins = pinned_versions()
    extras = tuple(settings["options.extras_require"])
    for requirement in our_requirements(settings, extras):
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned, f"constraints.txt lacks what setup.cfg asks for; add: {requirement.name}==<the version to use>"
        assert requirement.specifier.contains(pinned), f"constraints.txt: {requirement} excludes the pinned {pinned}"
    assert (pins["torch"], pins["torchvision"]) == ("2.13.0", "0.28.0")
