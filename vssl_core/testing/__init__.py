"""What every plugin must satisfy, as one call: for authors of plugins, in any test runner or none.

In the tests of your distribution, once it is installed:

    from vssl_core.testing import check_plugin

    def test_echo_keeps_its_promises():
        check_plugin("echo")

It trains the plugin for a few steps on a dozen tiny videos of its own, on the CPU, in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vssl_core.errors import VsslError

__all__ = ["ConformanceError", "check_plugin", "on_ranks"]


class ConformanceError(VsslError):
    """A plugin breaks promises: `failures` holds {check: one sentence}, and so does the text."""

    def __init__(self, name: str, failures: Mapping[str, str]) -> None:
        super().__init__(name, dict(failures))
        self.name, self.failures = name, dict(failures)

    def __str__(self) -> str:
        count = len(self.failures)
        lines = [
            f"plugin '{self.name}': {count} check{'s' * (count > 1)} failed",
            *(f"{check}: {told}" for check, told in self.failures.items()),
        ]
        return "\n  ".join(lines)


def check_plugin(name: str, **options: Any) -> None:
    """Check an installed plugin, with its defaults or with `options` as they would stand below `plugins.<name>`.

    Everything that it offers is checked: the options, what its import brings in, and of

    - an objective: finite losses and gradients, term names, state that only moves in announcements, random numbers that
      only follow from the seed, a restart that changes nothing, two ranks that equal one, bfloat16, videos shorter than
      any clip, and weight 0;
    - an evaluation: finite percentages, the same from the same features, that can be written as JSON;
    - a combiner, an observer: a short training with it, repeated, and restarted.

    Raises:
        PluginError: the plugin cannot be found or loaded.
        ConformanceError: one sentence for each check that failed.
    """
    failed, cause = failures(name, options)
    if failed:
        raise ConformanceError(name, failed) from cause


def on_ranks(ranks: int, job: Callable[..., Any], limit: float = 600, /, **values: Any) -> list[Any]:
    """What each of `ranks` processes got from `job(**values)`: a function of a file, and values that JSON can hold.

    They train together over gloo, stay for the whole session, and see this process's paths and environment.

    Raises:
        RankError: a rank raised, died, or gave no answer within `limit` seconds; none waits for ever.
    """
    from vssl_core.testing.ranks import pool

    return pool().do(ranks, job, values, limit)


def failures(
    name: str, options: Mapping[str, Any], only: Callable[[str], bool] = lambda check: True
) -> tuple[dict[str, str], BaseException | None]:
    """{check: sentence} of the checks that fail, among those that `only` admits, and the first error on the way."""
    from vssl_core.plugins import load
    from vssl_core.testing.checks import checks_of

    (plugin,) = load([name])[1].values()
    found: dict[str, str] = {}
    cause: BaseException | None = None
    with _traceless(), tempfile.TemporaryDirectory(prefix="vssl-check-") as folder:
        for check in checks_of(plugin, options, Path(folder)):
            if not only(check.name):
                continue
            try:
                problem = check.run()
            except Exception as error:
                problem = str(error) if isinstance(error, VsslError) else f"{type(error).__name__}: {error}"
                cause = cause or error
            if problem:
                found[check.name] = " ".join(problem.split())
            if problem and check.vital:
                break  # what comes after would fail for the same reason
    return found, cause


@contextmanager
def _traceless() -> Iterator[None]:
    """Leave the generators and the number of threads as they were."""
    import torch

    from vssl_core.run.checkpoint import generators, restore_generators

    before, threads = generators(), torch.get_num_threads()
    try:
        yield
    finally:
        restore_generators(before)
        torch.set_num_threads(threads)
