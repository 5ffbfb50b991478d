"""Whether the cells of a sweep can be done at all, and judged, asked before the first of them is."""

from __future__ import annotations

from collections.abc import Sequence

from vssl_core.commands.dry_run import find_list
from vssl_core.data.sources import source_of
from vssl_core.errors import told_of
from vssl_core.plugins import load
from vssl_core.run.build import build_parts, choose, open_data, sources_of
from vssl_core.run.launch import check
from vssl_core.run.sweep import Sweep
from vssl_core.run.sweep_cluster import single
from vssl_core.run.sweep_runs import SweepRun


def check_cells(settled: Sweep, runs: Sequence[SweepRun], given: bool, cluster: str | None) -> None:
    """Build each cell that has work left, as its run will; on a cluster, whose nodes are not this machine, ask Slurm.

    Raises:
        UserError: a cell cannot be; the sentence begins with the file and the cell.
        SlurmError: Slurm does not answer.
    """
    for cell in dict.fromkeys(run.cell for run in runs if run.standing != "done"):
        with told_of(f"{settled.path}: cell '{cell.name}'"):
            if cluster == "slurm":
                check(cell.config if cell.trains else single(cell.config), cluster)
            elif cell.trains:
                chosen = choose(cell.config)
                build_parts(chosen, find_list(chosen, given).videos)


def check_data(settled: Sweep, runs: Sequence[SweepRun], look: bool) -> None:
    """Find the source of all data that runs are still to be judged on; with `look`, its list too.

    Raises:
        DataError: there is no such source, or no list in its root.
    """
    seen = set()
    for run in runs if settled.evaluation_data else ():
        config = run.cell.config
        names = tuple(dict.fromkeys([*config.plugins, *settled.evaluations]))  # any of them may bring sources
        for data in run.missing:
            section = config.data.model_copy(update={"source": data.source, "root": data.root})
            if (names, section) not in seen:
                seen.add((names, section))
                with told_of(f"evaluation data '{data.name}'"):
                    manager = load(names)[0]
                    source_of(data.source, sources_of(manager))
                    if look:
                        open_data(config.model_copy(update={"data": section}), manager)
