"""A real run from the command line: what its folder holds afterwards, and the columns of the paper's third table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_runs import videos_folder

from vssl_core import cli

SWEEPS = Path(__file__).resolve().parents[3] / "configs" / "sweeps"
PNG = b"\x89PNG\r\n\x1a\n"
BASE = {
    "data": {"source": "folder", "workers": 0}, "clip": {"frames": 4, "size": 32}, "epochs": 2, "batch_size": 4,
    "device": {"kind": "cpu"}, "log": {"tensorboard": False}, "optim": {"lr": 0.02},
    "plugins": {"concepts": {"static_concepts": 6, "dynamic_concepts": 4, "valid": 0.5, "warmup_epochs": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep of the third table in small: its own evaluations and columns, one run of a dozen tiny videos."""
    place = tmp_path_factory.mktemp("swept")
    file = yaml.safe_load((SWEEPS / "concepts_table3.yaml").read_text())
    file["base"] = BASE
    file["evaluations"][1]["retrieval"]["ks"] = [1, 5]  # of a dozen videos
    (place / "small.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    words = [str(place / "small.yaml"), "--data", f"folder:{videos_folder()}", "--run", str(place / "sweep")]
    judged = ["--evaluation-data", f"ucf101=folder:{videos_folder()}"]  # under the name that the paper's numbers have
    assert cli.main(["sweep", *words, *judged]) == 0
    return place / "sweep"


@pytest.fixture(scope="module")
def evaluations(swept: Path) -> Path:
    """Where the run's evaluations lie."""
    (found,) = swept.glob("*/seed_0/evaluations")
    return found


@pytest.mark.slow
def test_the_drawings_lie_in_the_runs_folder_with_their_numbers(evaluations: Path) -> None:
    names = ("similarity", "static_attention", "dynamic_attention")
    for name in names:
        assert (evaluations / f"concepts_{name}.png").read_bytes().startswith(PNG)
    told = json.loads((evaluations / "concepts.json").read_text())
    assert set(told["tables"]) == set(names) and told["metrics"].keys() >= {"static_used", "dynamic_alike"}
    assert told["tables"]["similarity"]["classes"] == ["left", "right"]
    for kind, concepts in (("static", 6), ("dynamic", 4)):
        rows = told["tables"][f"{kind}_attention"]
        assert rows and all(0 <= row["concept"] < concepts and -1 <= row["activation"] <= 1 for row in rows)
        assert {row["video"] for row in rows} == {
            f"test/{side}/{number:02d}.mp4" for number, side in enumerate(["left", "right"] * 2)
        }


@pytest.mark.slow
def test_the_sweep_of_the_third_table_has_a_column_for_each_kind_of_features(swept: Path, evaluations: Path) -> None:
    kinds = ["v", "q", "q_static", "q_dynamic", "F", "F_static", "F_dynamic"]
    measured = json.loads((evaluations / "retrieval.json").read_text())["metrics"]
    assert {f"concepts/{kind}/r@1" for kind in kinds} <= set(measured)
    (heads,) = [line for line in (swept / "table.md").read_text().splitlines() if line.startswith("| cell ")]
    for kind in kinds:
        assert f" ucf101/retrieval/concepts/{kind}/r@1 |" in heads
        assert f" ucf101/linear/concepts/{kind}/top1 | ucf101/linear/concepts/{kind}/top1, paper |" in heads


@pytest.mark.slow
def test_a_linear_classifier_reads_one_of_them(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--evaluations", "linear", "plugins.linear.stage=concepts/F_dynamic", "plugins.linear.epochs=2"]
    assert cli.main(["evaluate", "--run", str(evaluations.parent), *words]) == 0
    told = json.loads((evaluations / "linear.json").read_text())
    assert told["protocol"]["stage"] == "concepts/F_dynamic" and "objectives" in told["hashes"]


@pytest.mark.slow
def test_a_run_without_concepts_has_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run", str(tmp_path / "run")]
    small = [f"{section}.{key}={value}" for section, values in BASE.items() if section in ("clip", "data", "device")
             for key, value in values.items() if key != "source"]  # fmt: skip
    words = ["--plugins", "rotation", "--data", f"folder:{videos_folder()}", "epochs=1", "batch_size=4", *small]
    assert cli.main(["train", *run, *words, "log.tensorboard=false"]) == 0
    assert cli.main(["evaluate", *run, "--evaluations", "concepts"]) == 2
    assert "'concepts/q_static'" in " ".join(capsys.readouterr().err.split())
