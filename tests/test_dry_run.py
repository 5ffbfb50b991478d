"""`vssl train --dry-run`: which length of the list sizes are resolved for, and that nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import VIDEOS, videos_folder

from vssl_core.cli import main
from vssl_core.commands.dry_run import LONGEST_LIST, NOMINAL_LIST, find_list
from vssl_core.config import load_config
from vssl_core.data.demo import demo_scenes
from vssl_core.errors import ConfigError
from vssl_core.run.build import build_parts, choose

SMALL = ("batch_size=4", "clip.frames=4", "clip.size=16")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where a file that is written would be seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code, and all that was printed, in one line without the frames of tables; words with '=' go last."""
    overrides = [word for word in words if "=" in word]
    code = main(["train", "--dry-run", *(word for word in words if "=" not in word), *SMALL, *overrides])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).replace("│", " ").split())


def activations(told: str) -> int:
    """MiB of them that a dry run foretells."""
    return int(re.search(r"(\d+) MiB of activations", told)[1])  # type: ignore[index]


def test_the_published_queue_fits_where_no_data_is_given(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    code, told = dry(capsys, "--plugins", "moco", "plugins.moco.queue=65536")
    assert code == 0 and "where a run would take the demo's 240; sizes are those for 65,536 videos" in told
    short = dry(capsys, "--plugins", "moco", "plugins.moco.queue=64")[1]
    assert activations(told) - activations(short) < 4  # MiB: of 33 MiB of queue, only the logits with it
    assert "backbone forwards per step: 2 (1 online, 1 teacher); decodes per video: 1" in told
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("plugins", "overrides"),
    [
        ("moco", ["plugins.moco.queue=65536"]),
        ("swav", ["plugins.swav.queue=50000", "plugins.swav.prototypes=50004"]),
        ("pcl", ["plugins.pcl.clusters=[25000,50000,100000]", "plugins.pcl.queue=16384"]),
        ("simclr", ["batch_size=20000"]),
    ],
)
def test_no_size_is_refused_for_want_of_a_list(plugins: str, overrides: list[str]) -> None:
    chosen = choose(load_config(None, plugins=[plugins], overrides=[*SMALL, *overrides]))
    assert build_parts(chosen, find_list(chosen, given=False).videos).ensemble.objectives


@given(number=st.integers(1, LONGEST_LIST))
@settings(max_examples=20, deadline=None)
def test_a_nominal_list_is_as_long_as_any_option_asks(number: int) -> None:
    chosen = choose(load_config(None, plugins=["moco", "stor"], overrides=[f"plugins.moco.queue={number}"]))
    assert find_list(chosen, given=False).videos == max(number, NOMINAL_LIST)


def test_the_true_length_counts_where_data_is_given(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    words = ["--plugins", "moco", "--data", f"folder:{videos_folder()}"]
    code, told = dry(capsys, *words, f"plugins.moco.queue={VIDEOS}")
    assert code == 0 and f"{VIDEOS} videos of folder:" in told
    code, told = dry(capsys, *words, f"plugins.moco.queue={VIDEOS + 1}")
    assert code == 2 and f"plugins.moco.queue: {VIDEOS + 1} rows are more than the {VIDEOS} videos" in told
    code, told = dry(capsys, *words, "batch_size=13")
    assert code == 2 and f"batch_size: 13 is more than the {VIDEOS} videos of the training list" in told
    assert not list(empty.iterdir())


def test_a_root_in_the_configuration_is_data_too() -> None:
    chosen = choose(
        load_config(None, plugins=["moco"], overrides=["data.source=folder", f"data.root={videos_folder()}", *SMALL])
    )
    assert find_list(chosen, given=False).videos == VIDEOS
    with pytest.raises(ConfigError, match="batch_size: 24 is more than"):
        find_list(choose(chosen.config.model_copy(update={"batch_size": 24})), given=False)


@pytest.mark.parametrize("place", ["ucf101:/nowhere", "csv:/nowhere/list.csv", "ucf101"])
def test_data_that_cannot_be_read_is_told_and_is_no_reason_to_stop(
    capsys: pytest.CaptureFixture[str], place: str
) -> None:
    code, told = dry(capsys, "--plugins", "moco", "--data", place, "plugins.moco.queue=65536")
    assert code == 0 and f"{place} cannot be read (" in told and "sizes are those for 65,536 videos" in told


def test_the_demo_is_counted_and_not_written(empty: Path) -> None:
    chosen = choose(load_config(None, plugins=["moco"], data=("demo", None)))
    wanted = sum(scene.path.startswith("train/") for scene in demo_scenes())
    assert find_list(chosen, given=True).videos == wanted > 0
    assert find_list(chosen, given=False).videos == NOMINAL_LIST
    assert not list(empty.iterdir())
