"""`vssl evaluate`: protocols on a trained backbone, and beside it on the same net without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vssl_core.commands.train import names
from vssl_core.config import RunConfig, build_options, load_config, to_tree
from vssl_core.data.named import data_set
from vssl_core.data.sources import Splits
from vssl_core.errors import CheckpointError, ConfigError, PluginError
from vssl_core.nets.backbones import fingerprint
from vssl_core.objective import Evaluation, Result
from vssl_core.plugins import Plugin, load
from vssl_core.run.build import choose_device, context_of, make_backbone, open_data
from vssl_core.run.checkpoint import restore_module
from vssl_core.run.evaluation import (
    Extraction,
    Objectives,
    check_labels,
    digest,
    extract,
    offered_stages,
    shared_extractions,
)
from vssl_core.run.files import write_csv, write_json
from vssl_core.run.folder import EVALUATIONS, read_run
from vssl_core.run.offered import EvaluationContext, Offers
from vssl_core.run.weights import WEIGHTS, read_weights

READ = ("data.", "clip.", "device.")  # of a run's configuration, by whatever judges it


def evaluate(run: str, evaluations: str, baseline: str | None, data: str | None, overrides: Sequence[str]) -> int:
    """Run the named protocols, write a JSON for each, and print the table."""
    folder = Path(run)
    config, options, place = _configure(folder, names(evaluations) or [], data, overrides)
    manager, plugins = load([*(name for name in config.plugins if name not in options), *options])
    torch.set_num_threads(config.device.threads)
    device = choose_device(config)
    trained = _trained(config, manager, folder)
    splits = open_data(config, manager)
    offers = Offers(config, manager, plugins, folder)
    context = EvaluationContext.of(context_of(config, "", trained, len(splits.train)), lambda: offers.widths)
    protocols = {name: _evaluation(plugins[name], raw, replace(context, name=name)) for name, raw in options.items()}
    needs = {name: protocol.needs() for name, protocol in protocols.items()}
    check_labels(needs, splits)
    nets: dict[str, nn.Module] = {"trained": trained}
    if baseline:
        nets[baseline] = make_backbone(config, manager)
    asked = {name: offered_stages([need], tuple(trained.stages)) for name, need in needs.items()}
    for name, stages in asked.items():
        for stage in stages:
            replace(context, name=name).stage(stage)  # nothing is decoded for what nobody offers
    objectives = {net: offers.trained if net == "trained" else offers.untrained for net in nets if any(asked.values())}
    results = _results(config, nets, objectives, splits, protocols, device)
    trained_as = digest(to_tree(read_run(folder)))
    for name in protocols:
        digests = {"config": trained_as, **({"objectives": offers.digest} if asked[name] else {})}
        _write(place, folder / WEIGHTS, name, config, splits, results[name], trained, digests)
    _print(results, place)
    return 0


def evaluate_run(run: str, parts: Sequence[tuple[str, str | None, Sequence[str]]]) -> None:
    """As `evaluate`, of (evaluations, data, overrides) one after another: what the tasks of a job are called with."""
    for evaluations, data, overrides in parts:
        evaluate(run, evaluations, None, data, overrides)


def _configure(
    folder: Path, chosen: Sequence[str], data: str | None, overrides: Sequence[str]
) -> tuple[RunConfig, dict[str, Any], Path]:
    """The run's configuration with the command line's changes, the options of each evaluation, and where results lie.

    Those of other data than the run's own have a folder of its name; own data has one too where you give it a name.
    """
    if not chosen:
        raise ConfigError("--evaluations: none is named; for example --evaluations retrieval,linear")
    own, judged = read_run(folder), None if data is None else data_set(data)
    mine = [override for override in overrides if override.startswith(tuple(f"plugins.{name}." for name in chosen))]
    for override in overrides:
        unknown = override.startswith("plugins.") and override.split(".")[1] not in own.plugins
        if override not in mine and not override.startswith(READ) and not unknown:
            raise ConfigError(
                f"'{override}': what was trained is not changed by judging it; an evaluation reads "
                f"{', '.join(f'{key}*' for key in READ)} and plugins.<its name>.*"
            )
    config = load_config(
        str(folder / "config.yaml"),
        data=(judged.source, judged.root) if judged else None,
        overrides=[override for override in overrides if override not in mine],
    )
    options = load_config(plugins=chosen, overrides=mine).plugins
    place = folder / EVALUATIONS
    return config, options, place / judged.name if judged and (judged.named or not judged.is_of(own.data)) else place


def _trained(config: RunConfig, manager: Any, folder: Path) -> nn.Module:
    backbone = make_backbone(config, manager)
    path = folder / WEIGHTS
    if not path.exists():
        raise CheckpointError(f"{path}: there are no weights yet; a run writes them at the end of each epoch")
    restore_module(backbone, read_weights(path), str(path), "leave the run's backbone as its config.yaml has it")
    return backbone


def _evaluation(plugin: Plugin, raw: Mapping[str, Any], context: EvaluationContext) -> Evaluation:
    if plugin.evaluation is None:
        raise PluginError(f"--evaluations: '{context.name}' is no evaluation; `vssl plugins` lists those that are")
    kind: Any = plugin.evaluation
    return kind(build_options(kind.Config, raw, context.name), context)


def _results(
    config: RunConfig,
    nets: Mapping[str, nn.Module],
    objectives: Objectives,
    splits: Splits,
    protocols: Mapping[str, Evaluation],
    device: torch.device,
) -> dict[str, dict[str, Result]]:
    """{evaluation: {net: result}}.

    Every video is decoded once for all nets and all evaluations that ask for alike clips.
    """
    from rich.progress import Progress

    nets = {net: backbone.to(device) for net, backbone in nets.items()}
    objectives = {
        net: {name: objective.to(device) for name, objective in offering.items()}
        for net, offering in objectives.items()
    }
    results: dict[str, dict[str, Result]] = {name: {} for name in protocols}
    with Progress(transient=True) as bar:
        for extraction, members in shared_extractions(protocols, tuple(nets["trained"].stages)).items():
            task = bar.add_task("features", total=_videos(splits, extraction))
            features = extract(
                config, nets, splits, extraction, device, lambda count, task=task: bar.advance(task, count), objectives
            )
            for name in members:
                bar.update(task, description=name)
                results[name] = {net: protocols[name].run(found) for net, found in features.items()}
    return results


def _videos(splits: Splits, extraction: Extraction) -> int:
    return sum(len(getattr(splits, split)) for split in extraction.splits)


def _write(
    place: Path,
    weights: Path,
    name: str,
    config: RunConfig,
    splits: Splits,
    results: Mapping[str, Result],
    backbone: nn.Module,
    digests: Mapping[str, str],
) -> None:
    clip = config.clip
    result = results["trained"]
    protocol = {
        **result.protocol,
        "frames": clip.frames,
        "size": clip.size,
        "stride": clip.stride,
        "normalisation": clip.normalisation,
        "data": splits.name,
    }
    value = {
        "evaluation": name,
        "metrics": dict(result.metrics),
        "baselines": {net: {"metrics": dict(other.metrics)} for net, other in results.items() if net != "trained"},
        "protocol": protocol,
        "fingerprint": fingerprint(backbone, clip.frames, clip.size),
        "hashes": {
            "protocol": digest(protocol),
            "split": digest([splits.train.digest(), splits.test.digest() if splits.test else None]),
            "weights": sha256(weights.read_bytes()).hexdigest()[:16],
            **digests,
        },
        "seed": config.seed,
        "tables": dict(result.tables),
    }
    if result.videos:
        write_csv(place / f"{name}.videos.csv", result.videos)
    write_json(place / f"{name}.json", value)  # last: whoever finds it finds all
    for figure, drawing in result.figures.items():
        drawing.savefig(place / f"{name}_{figure}.png")


def _print(results: Mapping[str, Mapping[str, Result]], place: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    nets = list(next(iter(results.values())))
    table = Table("evaluation", "metric", *nets, title="percent")
    for name, found in results.items():
        metrics = list(found["trained"].metrics)
        for metric in [metric for metric in metrics if "/" not in metric] or metrics:
            table.add_row(name, metric, *(f"{found[net].metrics[metric]:.1f}" for net in nets))
    console = Console()
    console.print(table)
    console.print(f"all metrics, stages and hashes: {place}", highlight=False)
