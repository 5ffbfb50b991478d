"""What is mended before PyTorchVideo is imported, each case in a fresh interpreter, since imports cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vssl_core.compat import torchvision_fault

ROOT = Path(__file__).parents[1]
clashing = pytest.mark.skipif(torchvision_fault() is None, reason="torchvision's operators load here: nothing to mend")
healthy = pytest.mark.skipif(torchvision_fault() is not None, reason="torchvision's operators do not load here")
DEFINE = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
ALIAS = "torchvision.transforms.functional_tensor"


def python(code: str, path: Path | None = None) -> str:
    """What a fresh interpreter prints; its error output where it fails."""
    paths = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@clashing
def test_torchvision_fails_without_mending() -> None:
    """The first fault is real here; without it these tests would prove nothing."""
    assert "operator torchvision::nms does not exist" in python("import torchvision")


def test_pytorchvideo_fails_without_its_old_module() -> None:
    """The second fault: PyTorchVideo's transforms ask for a module that torchvision renamed."""
    define = DEFINE if torchvision_fault() else ""
    assert "functional_tensor" in python(define + "import pytorchvideo.transforms")


@clashing
def test_mending_both_faults() -> None:
    """Everything imports afterwards, torchvision was not imported before it was needed, and a second call is idle."""
    code = """
import sys
from vssl_core.compat import mend
print(mend(), mend(), "torchvision" in sys.modules)
import torchvision, pytorchvideo.models, pytorchvideo.transforms
import torchvision.transforms.functional_tensor as old, torchvision.transforms._functional_tensor as new
print(old is new, new.__spec__.name, mend())
"""
    assert python(code).splitlines() == [
        f"('torchvision::nms', 'torchvision::qnms', '{ALIAS}') () False",
        "True torchvision.transforms._functional_tensor ()",
    ]


@clashing
def test_mending_after_a_failed_import() -> None:
    """A user who met the fault first can still go on in the same process."""
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from vssl_core.compat import mend
mend()
import torchvision.models.video
print("imported")
"""
    assert python(code) == "imported"


def test_operators_that_are_there_are_left_alone() -> None:
    """Where somebody registered the operators, only the module name is mended."""
    define = DEFINE if torchvision_fault() else "import torchvision\n"
    assert python(define + "from vssl_core.compat import mend; print(mend())") == f"('{ALIAS}',)"


@healthy
def test_a_healthy_torchvision_keeps_its_operators() -> None:
    """The real library is loaded, and its operators compute."""
    code = """
from vssl_core.compat import mend
print(mend())
import torch, torchvision
print(torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5).tolist())
"""
    assert python(code).splitlines() == [f"('{ALIAS}',)", "[0]"]


def test_an_old_torchvision_keeps_its_module(tmp_path: Path) -> None:
    """Where the old module exists it is the one that is imported."""
    (tmp_path / "torchvision" / "transforms").mkdir(parents=True)
    for name in ("__init__", "transforms/__init__", "transforms/functional_tensor"):
        (tmp_path / "torchvision" / f"{name}.py").write_text("old = True\n")
    code = f"from vssl_core.compat import mend; print('{ALIAS}' in mend()); import {ALIAS} as module; print(module.old)"
    assert python(code, tmp_path).splitlines() == ["False", "True"]


def test_without_torchvision_there_is_nothing_to_mend() -> None:
    """No error of our own in front of the import error that says what is missing."""
    code = "import sys; sys.modules['torchvision'] = None; from vssl_core.compat import mend; print(mend())"
    assert python(code) == "()"


def test_importing_the_contracts_mends_nothing() -> None:
    """`import vssl_core` touches neither torchvision nor PyTorchVideo."""
    code = "import sys, vssl_core, vssl_core.compat; print({'torch', 'torchvision', 'pytorchvideo'} & set(sys.modules))"
    assert python(code) == "set()"
