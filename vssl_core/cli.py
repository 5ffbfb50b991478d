"""The commands behind tools/ and the console command `vssl`.

Exit codes: 0 done, 2 your mistake, 130/143 interrupted and saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from vssl_core.errors import UserError, VsslError

OVERRIDES = "key=value"


def parser() -> argparse.ArgumentParser:
    """The whole command line; a test freezes its flags."""
    top = argparse.ArgumentParser(
        prog="vssl", description="Self-supervised video representation learning from plugins."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a backbone on the weighted sum of the chosen plugins' losses")
    train.add_argument("--plugins", help="comma-separated names, for example stor,pace,byol")
    train.add_argument("--config", help="a YAML file, one for each experiment")
    train.add_argument("--data", help="SOURCE[:ROOT] or a path")
    train.add_argument("--run", help="the run's folder; starting it again resumes it")
    train.add_argument(
        "--dry-run", action="store_true", help="print what would be trained; writes nothing and needs no data"
    )
    train.add_argument(
        "--launch", choices=["slurm", "local"], help="as a job of several tasks on a cluster, or in the background here"
    )
    train.add_argument("overrides", nargs="*", metavar=OVERRIDES)

    evaluate = commands.add_parser("evaluate", help="downstream protocols on a trained backbone")
    evaluate.add_argument("--run", required=True, help="the run's folder")
    evaluate.add_argument("--evaluations", required=True, help="comma-separated names, see `vssl plugins`")
    evaluate.add_argument("--baseline", choices=["random"], help="the same net without a step of training, beside it")
    evaluate.add_argument("--data", help="[NAME=]SOURCE[:ROOT] or a path; the run's own where absent")
    evaluate.add_argument("overrides", nargs="*", metavar=OVERRIDES)

    _sweep_flags(commands)
    _data_flags(commands)

    plugins = commands.add_parser("plugins", help="what is installed: options, requests, papers")
    plugins.add_argument("name", nargs="?", help="one plugin, in full")

    commands.add_parser("doctor", help="what works on this machine, and what to do where it does not")

    bench = commands.add_parser("bench", help="measured ratios of speed")
    bench.add_argument("names", nargs="*", metavar="NAME", help="rows to measure; all where absent")
    bench.add_argument("--clips", help="a folder of real clips")
    bench.add_argument("--json", action="store_true", help="print JSON")

    status = commands.add_parser("status", help="how far a run is")
    status.add_argument("run", help="the run's folder")

    demo = commands.add_parser("demo", help="generate, train, evaluate and print, in minutes")
    demo.add_argument("--run", default="runs/demo", help="the run's folder")
    demo.add_argument("overrides", nargs="*", metavar=OVERRIDES)
    return top


def _sweep_flags(commands: argparse._SubParsersAction) -> None:
    sweep = commands.add_parser("sweep", help="the runs of a sweep file, their evaluations and the table")
    sweep.add_argument("file", metavar="SWEEP.yaml", help="a base experiment, what varies, and the papers' numbers")
    sweep.add_argument("--run", help="the sweep's folder, runs/sweeps/<file name> if absent; starting it again goes on")
    sweep.add_argument("--data", help="SOURCE[:ROOT] or a path, for every run")
    sweep.add_argument(
        "--evaluation-data", action="append", default=[], metavar="[NAME=]SOURCE[:ROOT]",
        help="on which data every run is judged, and again for more; on its own if absent",
    )  # fmt: skip
    sweep.add_argument("--parallel", type=int, metavar="N", help="runs at a time: 1 if absent, on a cluster all")
    sweep.add_argument("--launch", choices=("local", "slurm"), help="runs as jobs of a cluster, or as processes here")
    sweep.add_argument("--retry-failed", action="store_true", help="do the runs again that have failed")
    sweep.add_argument("--dry-run", action="store_true", help="print cells and what is to be done; writes nothing")
    sweep.add_argument(
        "--measure", action="store_true", help="with --dry-run: time a step of each cell, estimate hours"
    )
    sweep.add_argument("overrides", nargs="*", metavar=OVERRIDES)


def _data_flags(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="look after data sets")
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    check = what.add_parser("check", help="decode every file, list those that cannot be read")
    check.add_argument("place", help="a path (every file below it), or SOURCE:ROOT")
    check.add_argument("--out", help="write the findings here, as JSON")
    check.add_argument("--workers", type=int, default=2, help="processes")
    check.add_argument("--seconds", type=float, default=60.0, help="time limit for a file")
    listing = what.add_parser("list", help="what a source holds")
    listing.add_argument("place", help="a path, or SOURCE:ROOT")
    demo_data = what.add_parser("demo", help="generate the demo's videos")
    demo_data.add_argument("folder", nargs="?", help="where; the cache folder if absent")
    prepare = what.add_parser(
        "prepare", help="write a copy that decodes fast: short side 128, a key frame every 12 frames"
    )
    prepare.add_argument("place", help="a path (every video below it), or SOURCE:ROOT")
    prepare.add_argument("--out", required=True, help="the folder of the copy")
    prepare.add_argument("--workers", type=int, default=2, help="processes")
    flow = what.add_parser("flow", help="compute optical flow ahead, for plugins that learn from motion")
    flow.add_argument("place", help="a path (every video below it), or SOURCE:ROOT")
    flow.add_argument("--out", required=True, help="the folder of the flow; started again, it goes on")
    flow.add_argument("--method", default="tvl1", help="tvl1, farneback or dis")
    flow.add_argument("--stride", type=int, default=1, help="frames from the first to the second of a pair")
    flow.add_argument("--blocks", type=int, default=96, help="blocks along the shorter side of a frame")
    flow.add_argument("--workers", type=int, default=2, help="processes")
    labels = what.add_parser("labels", help="draw what a plugin reads off clips, to see that it is right")
    labels.add_argument("place", help="a path, or SOURCE:ROOT")
    labels.add_argument("--plugin", required=True, help="whose labels")
    labels.add_argument("--out", help="the folder of the pictures, labels/<plugin> if absent")
    labels.add_argument("--videos", type=int, help="how many, spread over the list; 4, or 40 to compare")
    labels.add_argument(
        "--against", action="append", default=[], metavar=OVERRIDES, help="compare with labels under other options"
    )
    labels.add_argument("overrides", nargs="*", metavar=OVERRIDES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; everything that goes wrong on purpose is one sentence."""
    options = _parse(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"vssl {options.command}: {error}", file=sys.stderr)
        return 2
    except VsslError as error:
        if error.__cause__ is not None:  # raised in somebody's plugin: its author needs the place
            traceback.print_exception(error.__cause__)
        print(f"vssl {options.command}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print(f"vssl {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        sys.stderr.close()
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options, rest = parser().parse_known_args(arguments)
    if rest:  # overrides may stand between flags
        flags = [word for word in rest if word.startswith("-") or "=" not in word]
        if flags or not hasattr(options, "overrides"):
            _of_the_command(options).error(f"unrecognised arguments: {' '.join(flags or rest)}")
        options.overrides = [*options.overrides, *rest]
    return options


def _of_the_command(options: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was given, whose usage is the one to show."""
    found = parser()
    for name in (options.command, getattr(options, "what", None)):
        choices = [action.choices for action in found._actions if isinstance(action, argparse._SubParsersAction)]
        if choices and name:
            found = choices[0][name]
    return found


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "train":
            from vssl_core.commands.train import train

            return train(
                options.plugins, options.config, options.data, options.run, options.overrides,
                dry_run=options.dry_run, cluster=options.launch,
            )  # fmt: skip
        case "evaluate":
            from vssl_core.commands.evaluate import evaluate

            return evaluate(options.run, options.evaluations, options.baseline, options.data, options.overrides)
        case "sweep":
            from vssl_core.commands.sweep import sweep

            return sweep(
                options.file, options.run, options.data, options.parallel, options.overrides,
                evaluation_data=options.evaluation_data, retry_failed=options.retry_failed, dry_run=options.dry_run,
                measure=options.measure, cluster=options.launch,
            )  # fmt: skip
        case "data":
            from vssl_core.commands import data

            return data.run(options)
        case "plugins":
            from vssl_core.commands.plugins import show

            return show(options.name)
        case "doctor":
            from vssl_core.doctor import main as doctor

            return doctor()
        case "bench":
            from vssl_core.commands.bench import bench

            return bench(options.names, options.clips, options.json)
        case "status":
            from vssl_core.commands.status import status

            return status(options.run)
        case "demo":
            from vssl_core.commands.demo import demo

            return demo(options.run, options.overrides)
    raise AssertionError(options.command)


if __name__ == "__main__":  # `python -m vssl_core.cli`, and its worker processes import this file again
    raise SystemExit(main())
