"""What all tests share: one thread a process, and the folder of real clips where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from slurm.cluster import Cluster

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported here or in any process that a test starts


@pytest.fixture(autouse=True)
def threads_stay_as_set() -> Iterator[None]:
    """Run each test with the same number of torch threads: a run sets them from its config, for the whole process."""
    _set_threads()
    yield
    _set_threads()


def _set_threads() -> None:
    if "torch" in sys.modules:  # a test that needs no torch does not pay for its import
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips that VSSL_CLIPS names; tests that ask for it skip where there is none."""
    name = os.environ.get("VSSL_CLIPS")
    if not name:
        pytest.skip("needs real clips: set VSSL_CLIPS to their folder")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"VSSL_CLIPS: there is no folder {name}; name one that exists or unset it")
    return folder.resolve()


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `vssl demo`, the second half of `make demo`: made once for all tests, which are slow."""
    place = tmp_path_factory.mktemp("demo")
    command = [str(Path(sys.executable).parent / "vssl"), "demo", "--run", str(place / "run")]
    environment = {**os.environ, "VSSL_CACHE": str(place)}
    with open(place / "output.txt", "w") as output:
        done = subprocess.run(command, env=environment, cwd=place, stdout=output, stderr=subprocess.STDOUT)
    assert done.returncode == 0, (place / "output.txt").read_text()
    return place / "run"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A real Slurm of two virtual nodes, one for each file; tests skip only where none can be installed."""
    from slurm.cluster import Cluster, NoCluster, install

    place = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: sockets lie in it
    there = None
    try:
        install()
        there = Cluster(place)
        yield there.start()
    except NoCluster as reason:
        pytest.skip(str(reason))
    finally:
        if there is not None:
            there.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def distribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """distribute(distribution, {plugin: module}, {file: text}): install a throw-away distribution for one test."""
    modules: set[str] = set()

    def install(distribution: str, plugins: Mapping[str, str], files: Mapping[str, str]) -> None:
        place = tmp_path / f"site-{distribution}"
        about = place / f"{distribution.replace('-', '_')}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        points = "".join(f"{name} = {module}\n" for name, module in plugins.items())
        (about / "entry_points.txt").write_text(f"[vssl]\n{points}")
        for name, text in files.items():
            (place / name).write_text(text)
            modules.add(Path(name).stem)
        monkeypatch.syspath_prepend(place)

    yield install
    for module in modules:
        sys.modules.pop(module, None)
