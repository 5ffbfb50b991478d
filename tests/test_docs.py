"""The pages are true: their samples run, their commands work, their tables agree with the code.

Run as a program, this file writes the generated table of docs/configuration.md anew.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from vssl_core import cli
from vssl_core.commands.plugins import values as values_of
from vssl_core.config import FREE_KEYS, RunConfig, load_config, to_tree
from vssl_core.plugins import installed, load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TINY = ["batch_size=4", "clip.frames=4", "clip.size=16", "epochs=1", "data.workers=0", "log.tensorboard=false"]
QUICK_NETS = ("tiny", "r2plus1d_10", "c3d_light", "s3d")


def text(page: str) -> str:
    """A page's text, by its path below the project."""
    return (ROOT / page).read_text(encoding="utf-8")


def samples(page: str) -> dict[str, str]:
    """{file name: text} of the blocks behind `<!-- file: NAME -->`."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text(page), re.DOTALL))


def commands(page: str, only: str = "") -> list[list[str]]:
    """The command lines of a page's bash blocks, split into words; `only` names a `<!-- commands... -->` marker."""
    marked = rf"<!-- {only} -->\n" if only else ""
    blocks = re.findall(rf"{marked}```bash\n(.*?)```", text(page), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rows(page: str, marker: str) -> list[list[str]]:
    """The cells of the table behind a marker, without its two head lines."""
    lines = text(page).partition(f"<!-- {marker} -->")[2].lstrip("\n").partition("\n\n")[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a dozen tiny training videos of two classes, and four for testing."""
    from small_runs import write_videos

    place = tmp_path_factory.mktemp("small")
    write_videos(place)
    return place


def vssl(*words: str) -> int:
    """A command in this process; the exit code."""
    return cli.main(list(words))


# Pages ----------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What headings of a page can be linked to by."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: a link leads to {target}, which is not there"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    folders = "tests|docs|configs|tools|plugins|vssl_core"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name}: names {path}, which is not there"


def test_the_picture_is_svg_that_follows_the_reader() -> None:
    from xml.etree import ElementTree

    picture = ElementTree.parse(DOCS / "picture.svg").getroot()
    kinds = {element.tag.rpartition("}")[2] for element in picture.iter()}
    assert picture.tag.endswith("svg") and {"title", "desc", "text"} <= kinds
    assert not kinds & {"image", "script", "foreignObject"}, "nothing in the picture may be loaded or executed"
    assert "prefers-color-scheme: dark" in text("docs/picture.svg")


def test_readme_lists_the_plugins_there_are() -> None:
    listed = {re.sub(r"\[`(\w+)`\].*", r"\1", name): kind for name, kind, _ in rows("README.md", "plugins")}
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    declared = re.findall(r"^(\w+) *=", setup["options.entry_points"]["vssl"], re.MULTILINE)
    assert sorted(listed) == sorted(declared)
    here = [name for name, offers in installed().items() if any(offer.distribution == "vssl" for offer in offers)]
    assert {name: listed[name] for name in here} == {name: plugin.kind for name, plugin in load(here)[1].items()}


def test_make_demo_is_the_command_that_is_tested() -> None:
    recipe = re.search(r"^demo:.*\n\t(.*)$", text("Makefile"), re.MULTILINE)
    assert recipe and recipe[1] == "$(BIN)/vssl demo"


# Tables that are generated --------------------------------------------------------------------------------------------


def key_table() -> str:
    """Every key of the engine, as the table of docs/configuration.md."""
    lines = ["| key | default | values | what it is |", "|---|---|---|---|"]
    for key, default, values, meaning in _keys(RunConfig):
        lines.append(f"| `{key}` | `{default}` | {values} | {meaning} |")
    return "\n".join(lines)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _keys(type(default), f"{prefix}{name}.")
        else:
            written = json.dumps(default if not isinstance(default, tuple) else list(default))
            yield f"{prefix}{name}", written, values_of(field), field.description or ""


def test_configuration_lists_every_key() -> None:
    written = text("docs/configuration.md").partition("<!-- keys -->\n")[2].partition("\n<!-- end -->")[0]
    assert written == key_table(), "docs/configuration.md is not up to date; run: python tests/test_docs.py"


def test_every_key_is_described() -> None:
    assert not [key for key, _, _, meaning in _keys(RunConfig) if not meaning]


def test_configuration_names_the_keys_that_may_change() -> None:
    (line,) = re.findall(r"^.*none of them can change weights: (.*)\.$", text("docs/configuration.md"), re.MULTILINE)
    assert {word.strip("`") for word in line.split(", ")} == set(FREE_KEYS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_of_the_pages_is_a_configuration(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        RunConfig.model_validate(yaml.safe_load(block))


def net_rows() -> dict[str, list[str]]:
    """{name: cells} of the table of backbones."""
    return {row[0]: row for row in rows("docs/backbones.md", "backbones")}


def check_net(name: str, flops: bool) -> None:
    """The row of a net says what the net is."""
    from vssl_core.nets.backbones import build_backbone, fingerprint, stage_shapes

    _, _, clip, parameters, products, stages = net_rows()[name]
    frames, size = map(int, clip.split("x"))
    net = build_backbone(name)
    assert parameters == f"{sum(parameter.numel() for parameter in net.parameters()):,}"
    shapes = stage_shapes(net, frames, size).values()
    assert stages == ", ".join(f"{channels}x{time}x{side}" for channels, time, side, _ in shapes)
    if flops:
        assert products == f"{fingerprint(net, frames, size)['flops'] / 1e9:.3g}"


def test_backbones_page_names_every_net() -> None:
    from vssl_core.nets.backbones import builtin_backbones

    assert list(net_rows()) == list(builtin_backbones())


@pytest.mark.parametrize("name", QUICK_NETS)
def test_backbones_page_is_true(name: str) -> None:
    check_net(name, flops=name == "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in net_rows() if name not in QUICK_NETS])
def test_backbones_page_is_true_of_large_nets(name: str) -> None:
    check_net(name, flops=True)


def test_blocks_of_the_backbones_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    for block in re.findall(r"```python\n(.*?)```", text("docs/backbones.md"), re.DOTALL):
        exec(compile(block, "docs/backbones.md", "exec"), {})
    assert "'stage5': (2, 128, 2, 3, 3)} 128" in capsys.readouterr().out


# Papers' settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "papers").glob("*.yaml")), ids=lambda path: path.stem)
def test_papers_settings_load_and_say_what_they_are(path: Path) -> None:
    from vssl_core.run.build import choose

    head = path.read_text(encoding="utf-8").partition("\nbackbone:")[0]
    for word in ("# Paper ", "# Command ", "# Expected ", "# Hours "):
        assert word in head, f"{path.name}: its head must say {word.strip('# ')}"
    assert f"--config configs/papers/{path.name}" in head
    config = load_config(str(path))
    assert choose(config).config.plugins.keys() == config.plugins.keys()


def test_cstp_is_the_papers_recipe() -> None:
    """The facts of the paper and its code, and one pair for all four."""
    from vssl_core.joining import plan
    from vssl_core.looks import PRESETS
    from vssl_core.run.build import choose, context_of, make_backbone

    chosen = choose(load_config(str(ROOT / "configs/papers/cstp_ucf101_r2plus1d.yaml")))
    config = chosen.config
    tree = to_tree(config)
    assert (config.backbone.name, config.epochs, config.batch_size) == ("r2plus1d_10", 300, 60)
    assert (config.clip.frames, config.clip.size, config.clip.normalisation) == (16, 112, "minus1_1")
    optim = ("name", "lr", "momentum", "weight_decay", "schedule", "final_lr", "clip_norm")
    assert [tree["optim"][key] for key in optim] == ["sgd", 0.03, 0.9, 5e-4, "cosine", 1e-5, 18]
    assert [config.weight(name, 0) for name in ("byol", "stor", "pace", "rotation")] == [0.1, 1, 1, 1]
    assert tree["plugins"]["pace"]["paces"] == [1, 2, 4, 8] and tree["plugins"]["pace"]["views"] == "sum"
    byol = tree["plugins"]["byol"]
    assert [byol[key] for key in ("momentum", "schedule", "hidden", "projection")] == [0.998, "constant", 4096, 128]
    assert PRESETS[config.appearance.preset].gate_probability == 0.3
    tiny = config.model_copy(update={"backbone": RunConfig().backbone})  # requests do not depend on the net
    context = context_of(tiny, "", make_backbone(tiny, chosen.manager), videos=9537)
    objectives = {name: plugin.objective for name, plugin in chosen.plugins.items()}
    requests = {name: kind(chosen.options[name], context).requests() for name, kind in objectives.items() if kind}
    (group,) = plan(requests, config.clip_request()).groups
    assert group.request.least == 2 and group.request.strides.choices == (1, 2, 4, 8)


# Commands -------------------------------------------------------------------------------------------------------------


def our_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `vssl ...` on any page, those behind torchrun too."""
    found = []
    for page in PAGES:
        for words in commands(str(page.relative_to(ROOT))):
            if "vssl" in words:
                found.append((page.name, words[words.index("vssl") + 1 :]))
            elif words[0] == "python" and words[1].startswith("tools/"):
                assert (ROOT / words[1]).exists(), f"{page.name}: there is no {words[1]}"
                found.append((page.name, [Path(words[1]).stem, *words[2:]]))
    return found


@pytest.mark.parametrize(("page", "words"), [pytest.param(*row, id="-".join(row[1][:2])) for row in our_commands()])
def test_commands_of_the_pages_can_be_given(page: str, words: list[str]) -> None:
    options = cli._parse(words)
    config = getattr(options, "config", None)
    if config and config.startswith("configs/"):
        assert (ROOT / config).exists(), f"{page}: there is no {config}"
    for override in getattr(options, "overrides", []):
        key, equals, _ = override.partition("=")
        known = key.startswith("plugins.") or key in {key for key, *_ in _keys(RunConfig)}
        assert equals and known, f"{page}: {override}"


def test_commands_of_the_readme_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each as it stands there, but on a dozen tiny videos."""
    monkeypatch.chdir(tmp_path)
    lines = commands("README.md", "commands")
    assert {words[1] for words in lines} == {"train", "status", "evaluate", "plugins", "data", "doctor"}
    for _, *words in lines:
        match words[0]:
            case "train":
                words += ["--data", str(small), *TINY]
            case "evaluate":
                words += ["plugins.linear.epochs=2", "plugins.linear.clips=2", "plugins.retrieval.clips=2"]
            case "data":
                words = [str(small) if word == "demo" else word for word in words]
        if words[0] != "doctor":  # tests/test_doctor.py runs it
            assert vssl(*words) == 0, f"vssl {shlex.join(words)}"
    out = capsys.readouterr().out
    assert "backbone forwards per step: 4 (2 online, 2 teacher); decodes per video: 1" in out
    found = json.loads((tmp_path / "runs/joint/evaluations/retrieval.json").read_text())
    assert found["baselines"]["random"]["metrics"].keys() == found["metrics"].keys()
    blocks = re.findall(r"```python no-run\n(.*?)```", text("docs/backbones.md"), re.DOTALL)
    for block in blocks:  # they load the run that the README's commands have made
        exec(compile(block, "docs/backbones.md", "exec"), {})
    assert len(blocks) == 1


def test_the_sweep_of_the_readme_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As it stands there; it writes nothing, and data is not needed."""
    (words,) = [words[1:] for words in commands("README.md") if words[1:2] == ["sweep"]]
    assert words[1].startswith("configs/") and words[2:] == ["--dry-run"]
    monkeypatch.chdir(tmp_path)
    assert vssl("sweep", str(ROOT / words[1]), *words[2:]) == 0
    out = capsys.readouterr().out
    assert all(cell["name"] in out for cell in yaml.safe_load(text(words[1]))["cells"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_paper_of_the_readme_would_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As it stands there, but with --dry-run: the whole net makes one step."""
    (words,) = [words[1:] for words in commands("README.md") if words[:2] == ["vssl", "train"] and "--config" in words]
    place = words.index("--config") + 1
    assert words[place].startswith("configs/papers/")
    words[place] = str(ROOT / words[place])
    monkeypatch.chdir(tmp_path)
    assert vssl(*words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "r2plus1d_10" in out and "decodes per video: 1" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun_command_of_the_readme_works(small: Path, tmp_path: Path) -> None:
    (words,) = [words for words in commands("README.md") if words[0] == "torchrun"]
    words = ["2" if word == "4" else word for word in words]
    here = Path(sys.executable).parent
    words[0], words[words.index("vssl")] = str(here / "torchrun"), str(here / "vssl")
    words += ["--data", str(small), "device.kind=cpu", *TINY]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/joint/backbone.safetensors").exists()


# Plugins of the pages -------------------------------------------------------------------------------------------------


def single_files() -> dict[str, str]:
    """The samples that are one module each, README's too."""
    found = {**samples("README.md"), **samples("docs/plugins.md")}
    return {name: source for name, source in found.items() if "/" not in name}


def points(files: dict[str, str]) -> dict[str, str]:
    """{entry point: where it leads}: an observer is an object in its module, all else the module."""
    named = {name.removesuffix(".py"): source for name, source in files.items()}
    found = {}
    for module, source in named.items():
        name = module.removeprefix("vssl_")
        found[name] = f"{module}:{name}" if re.search(rf"^{name} = ", source, re.MULTILINE) else module
    return found


@pytest.fixture(scope="module")
def order_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the page's distribution, from the page's own packaging files."""
    place = tmp_path_factory.mktemp("order")
    for name, source in samples("docs/plugins.md").items():
        if "/" in name:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command += ["--target", str(place / "site"), str(place / "vssl-order")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "site"


@pytest.fixture
def order(order_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, found by this process for one test."""
    monkeypatch.syspath_prepend(order_site)
    importlib.invalidate_caches()
    yield order_site
    for name in [name for name in sys.modules if name.partition(".")[0] == "vssl_order"]:
        del sys.modules[name]


Distribute = Callable[..., None]


@pytest.fixture
def extras(distribute: Distribute) -> None:
    """Every single-file sample, installed for one test."""
    files = single_files()
    distribute("pages", points(files), files)


def test_the_readme_plugin_has_twelve_lines_and_trains(
    distribute: Distribute, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = samples("README.md")
    (source,) = files.values()
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith('"""')]) == 12
    distribute("vssl-where", {"where": "vssl_where"}, files)
    words = ["--plugins", "where,rotation", "--data", str(small), "--run", str(tmp_path / "run")]
    assert vssl("train", *words, *TINY) == 0
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3 and 0 < steps[0]["where/error"] < 1.5


def test_the_plugin_page_from_files_to_training(
    order: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for program, *words in commands("docs/plugins.md", "commands: order"):
        if program == "vssl":
            words += ["--data", str(small), *TINY] if words[0] == "train" else []
            assert vssl(*words) == 0
    out = capsys.readouterr().out
    assert "vssl-order 0.1.0" in out and "tell which came first" in " ".join(out.split())
    assert "backbone forwards per step: 2 (2 online, 0 teacher); decodes per video: 1" in out
    plan = json.loads((tmp_path / "runs/order/plan.json").read_text())
    assert [list(group["members"]) for group in plan["groups"]] == [["order/pair", "rotation/clip"]]
    config = yaml.safe_load((tmp_path / "runs/order/config.yaml").read_text())
    assert config["plugins"]["order"] == {"layers": 1}


def test_every_other_sample_runs(extras: None, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A queue, an observer, a curriculum, a backbone, a source, a combiner and an evaluation, all in one run."""
    run = tmp_path / "run"
    words = ["train", "--plugins", "recall,watch,shortfirst,extras,balance", "--data", f"everything:{small}/train"]
    changes = ["backbone.name=toy", "combine.name=balance", "plugins.recall.rows=6", *TINY, "epochs=2"]
    assert vssl(*words, "--run", str(run), *changes) == 0
    out = capsys.readouterr().out
    assert "watch: epoch 2, median gradient" in out and "watch: done" in out
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    assert all(step["loss"] == pytest.approx(1.0) for step in steps), "the combiner makes every loss one"
    assert len({step["recall/contrast"] for step in steps}) == 6
    assert vssl("evaluate", "--run", str(run), "--evaluations", "likeness", "--data", str(small)) == 0
    found = json.loads((run / "evaluations/folder/likeness.json").read_text())
    assert -100 <= found["metrics"]["likeness"] <= 100 and found["fingerprint"]["name"] == "toy"
    from vssl_core.run.checkpoint import load as load_checkpoint

    state = load_checkpoint(run / "checkpoint.pt")["ensemble"]
    lengths = state["objectives.recall.queue.rows"].norm(dim=1)
    assert lengths.shape == (6,) and lengths.allclose(lengths.new_ones(6), atol=1e-5)
    assert int(state["objectives.recall.queue.filled"]) == 6


def test_samples_are_as_clean_as_the_code(tmp_path: Path) -> None:
    for name, source in {**samples("docs/plugins.md"), **single_files()}.items():
        if name.endswith(".py") and name != "vssl_where.py":  # whose lines are counted
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "ruff.toml"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_test_file_of_the_page_passes(order_site: Path) -> None:
    tests = order_site.parent / "vssl-order" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "PYTHONPATH": str(order_site)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=order_site.parent, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_samples_keep_the_contract(extras: None) -> None:
    """All but one thing, which the page says: a single file imports torch when it is listed."""
    from vssl_core.testing import failures

    for name in points(single_files()):
        found, cause = failures(name, {})
        assert set(found) <= {"imports"}, f"{name}: {found} ({cause!r})"


# The demo -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_leaves_what_the_page_says(demo_run: Path) -> None:
    section = text("docs/architecture.md").partition("## A run's folder")[2]
    listed = re.findall(r"^\| `([^|]+)` \| ", section, re.MULTILINE)
    names = [name for cell in listed for name in cell.replace("`", "").split(", ")]
    assert "config.yaml" in names and "backbone.json" in names
    for name in names:
        pattern = name.replace("NNNN", "*").replace("<name>", "*").rstrip("/")
        # Of other runs: its own videos can all be read, it was no job, and is judged on its own data
        if name in ("skipped.jsonl", "launch/", "evaluations/<data>/"):
            assert not (demo_run / name).exists()
        else:
            assert list(demo_run.glob(pattern)), f"the demo left no {name}"


@pytest.mark.slow
def test_the_demo_beats_random_initialisation(demo_run: Path) -> None:
    for evaluation, metric in (("retrieval", "r@1"), ("linear", "top1")):
        found = json.loads((demo_run / "evaluations" / f"{evaluation}.json").read_text())
        trained, random = found["metrics"][metric], found["baselines"]["random"]["metrics"][metric]
        assert trained > random + 25, f"{evaluation}: {trained} where a random net has {random}"


if __name__ == "__main__":
    page = DOCS / "configuration.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- keys -->\n")
    after = rest.partition("<!-- end -->")[2]
    page.write_text(f"{before}<!-- keys -->\n{key_table()}\n<!-- end -->{after}", encoding="utf-8")
