"""What the console shows of a run: the table at its end, and a bar below the run's own for what takes long."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import rich
from rich.console import Console
from small_runs import STEPS, VIDEOS, Colour, open_small
from torch import Tensor

from vssl_core import Batch, Request, Run, Terms, hookimpl
from vssl_core.run import logs
from vssl_core.run.logs import Progress, shown


class Late(Colour):
    """A second term from the second epoch on; both tell the epoch."""

    def forward(self, batch: Batch) -> Terms:
        there = 0 * sum(super().forward(batch).losses.values())
        losses = {"always": there + batch.epoch + 1}
        return Terms(losses | ({"late": there + 10 * batch.epoch} if batch.epoch else {}))


class Notes:
    """Notes a number in the second step alone."""

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        if run.step == 1:
            run.note("notes/once", 5.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    """The shared console as a terminal that keeps what it is sent."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(rich, "_console", console)
    return console


def sent(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_at_the_end_has_the_first_and_the_last_value_of_every_term(tmp_path: Path, terminal: Console) -> None:
    """Of a term that comes late, its own first; of one that is not there at the end, its own last."""
    run = open_small(tmp_path, {"late": Late, "notes": Notes()}, epochs=3)
    run.manager.register(progress := Progress(), "vssl/progress")
    run.train()
    table = progress._table()
    cells = zip(*(column.cells for column in table.columns), strict=True)
    rows = {name: values for name, *values in cells}
    assert rows["late/always"] == ["1", "3"] and rows["late/late"] == ["10", "20"]
    assert rows["notes/once"] == ["5", "5"] and run.step == 3 * STEPS
    assert "late/late" in sent(terminal)


def test_work_is_shown_where_it_is_long_and_not_where_it_is_short(
    terminal: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown("counting sheep", total=3) as advance:
        advance(1)
    assert "counting sheep" not in sent(terminal)
    monkeypatch.setattr(logs, "SHORT", -1.0)
    with shown("counting sheep", total=3) as advance:
        advance(2)
    assert "counting sheep" in sent(terminal) and "67%" in sent(terminal)


@pytest.mark.parametrize(("is_terminal", "number"), [(False, 0), (True, 1)])
def test_nobody_is_shown_a_bar_without_a_terminal_or_on_another_rank(
    is_terminal: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr(logs, "SHORT", -1.0)
    monkeypatch.setattr(logs, "rank", lambda: number)
    with shown("counting sheep", total=3) as advance:
        advance(3)
    assert sent(console) == ""


def test_extraction_shows_how_far_it_is_beside_the_run_s_own_bar(
    tmp_path: Path, terminal: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SHORT", -1.0)
    progress, found = Progress(), []

    def encode(batch: Batch) -> dict[str, Tensor]:
        progress.bar.refresh()  # as it does twice a second
        return {"vector": batch["clips"][0].features.vector}

    class Looks:
        @hookimpl
        def vssl_epoch_start(self, run: Run) -> None:
            found.append(run.extract(Request(), encode)["index"].tolist())

    run = open_small(tmp_path, {"late": Late, "looks": Looks()}, epochs=1)
    run.manager.register(progress, "vssl/progress")
    run.train()
    assert found == [list(range(VIDEOS))] and all(told in sent(terminal) for told in ("extracting", "33%", "67%"))
