"""Says in plain words what works on this machine, what does not and why, and what to do about it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Literal

from vssl_core import machine
from vssl_core.compat import mend, torchvision_fault

Level = Literal["good", "note", "warning", "fault"]
GIB = 2**30
REQUIRED = ("fvcore", "iopath", "matplotlib", "numpy", "pluggy", "pydantic", "PyYAML", "rich", "safetensors")
REQUIRED += ("scikit-learn", "submitit", "tensorboard")
#: cuDNN releases whose three-dimensional convolutions are slow in mixed precision or wrong in TF32.
BAD_CUDNN = (91000, 91500)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what is there, and what to do where something should change.

    `good` works; `note` is fine as it is; `warning` works but could be better; `fault` keeps training from running.
    """

    level: Level
    subject: str
    says: str
    advice: str = ""


def load(name: str) -> tuple[ModuleType | None, str]:
    """A module, or None and the reason in one line; whatever goes wrong in somebody's import is a reason."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # noqa: BLE001 - broken libraries raise anything: OSError, RuntimeError, AttributeError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, lines[0]


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def python() -> Iterator[Finding]:
    """The interpreter, and the plain libraries that every run needs."""
    yield Finding("good", "python", f"{sys.version.split()[0]} at {sys.executable}")
    missing = [name for name in REQUIRED if installed(name) is None]
    if missing:
        yield Finding("fault", "libraries", f"not installed: {', '.join(missing)}", "run `pip install -e .` again")
    else:
        yield Finding("good", "libraries", ", ".join(f"{name} {installed(name)}" for name in REQUIRED))


def torch() -> Iterator[Finding]:
    """Torch and the devices it sees."""
    module, reason = load("torch")
    if module is None:
        yield Finding("fault", "torch", f"cannot be imported: {reason}", "install it: `pip install torch torchvision`")
        return
    flavour = f"built for CUDA {module.version.cuda}" if module.version.cuda else "built for the CPU"
    yield Finding("good", "torch", f"{module.__version__}, {flavour}")
    if module.cuda.is_available():
        yield from _gpus(module)
    elif shutil.which("nvidia-smi") is None:
        yield Finding("note", "gpu", "none found; training runs on the CPU, which is what the `tiny` backbone is for")
    elif module.version.cuda is None:
        advice = "install a build of torch and torchvision for CUDA to use it"
        yield Finding("warning", "gpu", "there is an NVIDIA driver, but torch was built for the CPU", advice)
    else:
        advice = "compare the CUDA version of `nvidia-smi` with torch's, and look at CUDA_VISIBLE_DEVICES"
        yield Finding("warning", "gpu", "there is an NVIDIA driver, but torch sees no GPU", advice)


def _gpus(module: ModuleType) -> Iterator[Finding]:
    for index in range(module.cuda.device_count()):
        device = module.cuda.get_device_properties(index)
        yield Finding("good", f"gpu {index}", f"{device.name}, {device.total_memory / GIB:.0f} GiB")
    yield cudnn(module.backends.cudnn.version())


def cudnn(number: int | None) -> Finding:
    """The finding for a cuDNN version as torch reports it: 91002 is 9.10.2, 8902 is 8.9.2."""
    if number is None:
        return Finding("warning", "cudnn", "not available, so convolutions are slow", "install torch for CUDA again")
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    name = f"{major}.{rest // 100}.{rest % 100}"
    if BAD_CUDNN[0] <= number < BAD_CUDNN[1]:
        return Finding(
            "warning",
            "cudnn",
            f"{name}: before 9.15 and from 9.10, 3-D convolutions can be slow in mixed precision and wrong in TF32",
            "install cuDNN 9.15 or later (`pip install -U nvidia-cudnn-cu12`, or cu13), or a torch that brings it",
        )
    return Finding("good", "cudnn", name)


def torchvision() -> Iterator[Finding]:
    """torchvision and PyTorchVideo, after what is known to be broken was mended."""
    if load("torch")[0] is None:
        return
    fault, mended = torchvision_fault(), mend()
    module, reason = load("torchvision")
    if module is None:
        advice = "install torchvision from the same place as torch, in the version that belongs to it"
        yield Finding("fault", "torchvision", f"cannot be imported: {reason}", advice)
    elif fault is not None:
        yield Finding(
            "note",
            "torchvision",
            f"{module.__version__}: its operators do not load beside this torch ({fault}); mended, they are not used",
            "nothing; to be rid of this line, install torch and torchvision in one flavour from one place",
        )
    else:
        yield Finding("good", "torchvision", f"{module.__version__}, operators loaded")
    yield _pytorchvideo(mended)


def _pytorchvideo(mended: tuple[str, ...]) -> Finding:
    for name in ("pytorchvideo.models", "pytorchvideo.transforms"):
        module, reason = load(name)
        if module is None:
            return Finding("fault", "pytorchvideo", f"no {name}: {reason}", "`pip install pytorchvideo`")
    after = f"; mended for it: {', '.join(mended)}" if mended else ""
    return Finding("good", "pytorchvideo", f"{installed('pytorchvideo')}{after}")


def video() -> Iterator[Finding]:
    """What reads videos: PyAV always, torchcodec where it loads."""
    av, reason = load("av")
    if av is None:
        yield Finding("fault", "pyav", f"cannot be imported: {reason}", "`pip install av`; FFmpeg is inside")
    else:
        libraries = ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())
        release = getattr(av, "ffmpeg_version_info", "")
        yield Finding("good", "pyav", f"{av.__version__}, FFmpeg {release} ({libraries})".replace("  ", " "))
        if "libx264" not in av.codecs_available:
            advice = "`pip install --force-reinstall av`; reading videos works without it"
            yield Finding("warning", "h.264", "this FFmpeg cannot write H.264, which the demo needs", advice)
    if installed("torchcodec") is None:
        yield Finding("note", "torchcodec", "not installed; frames are read with PyAV", "nothing, it is optional")
        return
    module, reason = load("torchcodec.decoders")
    if module is None:
        advice = "nothing, PyAV is used; else install the torchcodec that belongs to this torch, and FFmpeg"
        yield Finding("warning", "torchcodec", f"{installed('torchcodec')} does not load: {reason}", advice)
    else:
        yield Finding("good", "torchcodec", f"{installed('torchcodec')}")


def extras() -> Iterator[Finding]:
    """faiss for retrieval, OpenCV for optical flow."""
    faiss, reason = load("faiss")
    if faiss is None:
        advice = "`pip install 'vssl[cpu]'`, or 'vssl[gpu]', for retrieval; training runs without it"
        yield Finding("note", "faiss", f"cannot be imported: {reason}", advice)
    elif hasattr(faiss, "StandardGpuResources"):
        yield Finding("good", "faiss", f"{faiss.__version__}, for GPUs, sees {faiss.get_num_gpus()}")
    else:
        yield Finding("good", "faiss", f"{faiss.__version__}, for the CPU")
    cv2, reason = load("cv2")
    if cv2 is None:
        advice = "`pip install 'vssl[flow]'` for optical flow; training runs without it"
        yield Finding("note", "opencv", f"cannot be imported: {reason}", advice)
    elif not hasattr(cv2, "optflow"):
        advice = "`pip uninstall opencv-python opencv-python-headless`, then `pip install 'vssl[flow]'`"
        yield Finding("warning", "opencv", f"{cv2.__version__} has no TV-L1 flow: it is not the contrib build", advice)
    else:
        yield Finding("good", "opencv", f"{cv2.__version__}, with TV-L1 flow")


def computer() -> Iterator[Finding]:
    """Cores, memory, and the places where loader workers and temporary files live."""
    memory = machine.memory_bytes()
    amount = f"{memory / GIB:.1f} GiB" if memory else "an unknown amount"
    yield Finding("good", "cpu", f"{machine.cores():g} cores, {amount} of memory")
    yield space("temporary files", Path(tempfile.gettempdir()), "point TMPDIR to a folder with more room")
    if Path("/dev/shm").is_dir():
        advice = "give the container more (`--shm-size=8g`), or set workers to 0: loader workers pass clips through it"
        yield space("shared memory", Path("/dev/shm"), advice)


def space(subject: str, folder: Path, advice: str, least: int = GIB) -> Finding:
    free = machine.free_bytes(folder) or 0
    says = f"{free / GIB:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("warning", subject, f"{folder} cannot be written to", advice)
    return Finding("good", subject, says) if free >= least else Finding("warning", subject, says, advice)


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted from here."""
    program = shutil.which("sbatch")
    if program is None:
        yield Finding("note", "slurm", "no sbatch here; runs start on this machine only", "nothing, it is optional")
        return
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        says = f"{program} does not tell its version: {_failure(error)}"
        yield Finding("warning", "slurm", says, "ask whoever looks after the cluster")
        return
    yield Finding("good", "slurm", f"{answer.stdout.strip()} at {program}")


def _failure(error: OSError | subprocess.SubprocessError) -> str:
    """Why a program did not do what it was asked, in words."""
    if isinstance(error, subprocess.CalledProcessError):
        first = next(iter((error.stderr or "").strip().splitlines()), "")
        return f"it ended with exit code {error.returncode}{f' and said: {first}' if first else ''}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {error.timeout:g} seconds"
    return f"it cannot be run ({getattr(error, 'strerror', None) or error})"


def training() -> Iterator[Finding]:
    """One real step: the smallest backbone, forward and backward."""
    module, _ = load("torch")
    if module is None:
        yield Finding("fault", "training", "cannot run without torch", "see above")
        return
    backbones, reason = load("vssl_core.nets.backbones")
    if backbones is None:
        yield Finding("fault", "training", f"the backbones cannot be imported: {reason}", "see above")
        return
    device = "cuda" if module.cuda.is_available() else "cpu"
    backbone, start = backbones.build_backbone("tiny").to(device), time.perf_counter()
    list(backbone(module.randn(2, 3, 8, 32, 32, device=device)).values())[-1].mean().backward()
    took = time.perf_counter() - start
    yield Finding("good", "training", f"a forward and backward of the `tiny` backbone ran on {device} in {took:.2f} s")


Check = Callable[[], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (python, torch, torchvision, video, extras, computer, slurm, training)


def report() -> list[Finding]:
    """Everything that was looked at, in order; a check that breaks is itself a finding."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # noqa: BLE001 - the doctor examines broken machines and must reach the end
            where = traceback.extract_tb(error.__traceback__)[-1]
            says = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            findings.append(Finding("fault", check.__name__, says, "this should not happen: please report it"))
    return findings


def line(finding: Finding) -> str:
    """A finding as text, wrapped to the terminal; without rich, which may be what is missing."""
    width, start = shutil.get_terminal_size((120, 24)).columns, f"{finding.level:<8} {finding.subject:<16} "
    indent = " " * len(start)
    rows = textwrap.wrap(finding.says, width, initial_indent=start, subsequent_indent=indent)
    rows += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   ")
    return "\n".join(rows)


def main() -> int:
    """Print the report; 0 where training can run, 1 where it cannot."""
    findings = report()
    for finding in findings:
        print(line(finding))
    faults = [finding.subject for finding in findings if finding.level == "fault"]
    print(f"\nTraining cannot run here: {', '.join(faults)}." if faults else "\nTraining can run here.")
    return 1 if faults else 0
