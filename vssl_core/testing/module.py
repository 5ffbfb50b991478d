"""What holds of a plugin's module before anything is built: it says what it is, and importing it is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from vssl_core.plugins import Plugin

HEAVY = (
    "torch",
    "torchvision",
    "torchcodec",
    "pytorchvideo",
    "av",
    "cv2",
    "faiss",
    "sklearn",
    "scipy",
    "matplotlib",
    "tensorboard",
)

PROGRAM = """
import importlib, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print("imported:", *(set(sys.modules) - before))
"""


def documentation(plugin: Plugin) -> str | None:
    """`vssl plugins NAME` prints the module's docstring."""
    if not (plugin.module.__doc__ or "").strip():
        return "its module has no docstring; say there in a paragraph what it trains or measures"
    if not isinstance(getattr(plugin.module, "PAPER", ""), str):
        return "PAPER must be a string: authors, title, venue and year"
    return None


def imports(plugin: Plugin) -> str | None:
    """A fresh interpreter that imports the plugin's module gets none of the heavy libraries with it.

    But torch, where the class that is offered stands in this very module: what it derives from brings torch.
    """
    name = getattr(plugin.module, "__name__", type(plugin.module).__module__)  # an entry point may name an object
    classes = (plugin.objective, plugin.evaluation, plugin.combiner, plugin.observer)
    spared = {"torch"} if any(offered is not None and offered.__module__ == name for offered in classes) else set()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"'{name}' cannot be imported in a fresh interpreter ({last}); import what it needs itself"
    brought = {module.partition(".")[0] for module in done.stdout.rpartition("imported:")[2].split()} - spared
    heavy = [library for library in HEAVY if library in brought]
    if heavy:
        return f"importing '{name}' also imports {', '.join(heavy)}; import the classes inside its hook functions"
    return None


def offers(plugin: Plugin) -> str | None:
    """Backbones and sources are functions by name; a backbone can be built."""
    from vssl_core.nets.backbones import Backbone

    for hook in ("vssl_backbones", "vssl_sources"):
        offer = getattr(plugin.module, hook, dict)()
        named = isinstance(offer, Mapping) and all(isinstance(name, str) and callable(offer[name]) for name in offer)
        if not named:
            return f"{hook} must give {{name: function}}, got {offer!r}"
        for name, function in offer.items() if hook == "vssl_backbones" else ():
            if not isinstance(built := function(), Backbone):
                return f"backbone '{name}' must be a vssl_core.Backbone, got {type(built).__name__}"
    return None
