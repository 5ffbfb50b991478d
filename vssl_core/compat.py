"""Mends what PyTorchVideo 0.1.5 and torchvision expect and cannot find on this machine, in one place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

#: Operators for which torchvision registers shapes at import, whether or not its library could be loaded.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
OLD_NAME, NEW_NAME = "torchvision.transforms.functional_tensor", "torchvision.transforms._functional_tensor"
_kept: list[object] = []  # a torch.library.Library takes its definitions along when it is collected


def mend() -> tuple[str, ...]:
    """Make `import torchvision` and `import pytorchvideo` work; returns the names that were mended, () if none was.

    Two faults, each touched only where it is present, so on a healthy machine, or when called twice, nothing changes:

    * torchvision's wheel from the package index is built against CUDA. Beside a CPU-only torch its compiled library
      does not load, and `import torchvision` fails with "operator torchvision::nms does not exist", since it registers
      shapes for operators that the library would have defined. None of them is used here, so their bare schemas do.
    * PyTorchVideo 0.1.5, the last release, imports `torchvision.transforms.functional_tensor`, which torchvision 0.17
      renamed to `_functional_tensor`. The old name is made to lead to the new module, imported when it is asked for.
    """
    if importlib.util.find_spec("torchvision") is None:
        return ()
    return (*_define_operators(), *_alias_old_name())


def torchvision_folder() -> Path | None:
    """Where torchvision is installed, found without importing it; None where it is not."""
    spec = importlib.util.find_spec("torchvision")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def torchvision_fault() -> str | None:
    """Why torchvision's compiled operators cannot be used, in the loader's words; None where they can."""
    import torch

    folder = torchvision_folder()
    if folder is None:
        return "torchvision is not installed"
    libraries = sorted(path for path in folder.glob("_C*") if path.suffix in {".so", ".pyd", ".dylib"})
    if not libraries:
        return "torchvision was installed without its compiled library"
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return str(error.__cause__ or error)
    return None


def _missing_operators() -> tuple[str, ...]:
    import torch

    return tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))


def _define_operators() -> tuple[str, ...]:
    if not _missing_operators() or torchvision_fault() is None:  # a library that loads defines the real ones
        return ()
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    _kept.append(library)
    missing = _missing_operators()
    for name in missing:
        library.define(SCHEMAS[name])
    return tuple(f"torchvision::{name}" for name in missing)


class _OldName:
    """An import finder and loader that answers for one module name with the module under its new name."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == OLD_NAME else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Nothing: an empty module holds the place until `exec_module`."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[OLD_NAME] = importlib.import_module(NEW_NAME)  # the import system hands out what it finds here


def _alias_old_name() -> tuple[str, ...]:
    folder = torchvision_folder()
    there = folder is None or (folder / "transforms" / "functional_tensor.py").exists() or OLD_NAME in sys.modules
    if there or any(isinstance(finder, _OldName) for finder in sys.meta_path):
        return ()
    sys.meta_path.append(_OldName())  # last: asked only when nobody else knows the name
    return (OLD_NAME,)
