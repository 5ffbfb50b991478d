"""The run: one folder, one loop. Read `train`, `_train_epoch` and `step` from top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vssl_core.config import RunConfig, build, differences, read_yaml, to_tree, to_yaml
from vssl_core.data.batches import prepare
from vssl_core.data.clips import ClipLoader, Clips, Cutter, RawBatch, visits_of
from vssl_core.data.sources import Splits
from vssl_core.distributed import any_rank, average, broadcast, gather_kept, rank, world_size
from vssl_core.errors import CheckpointError, ConfigError, PluginError, VsslError
from vssl_core.nets.backbones import fingerprint
from vssl_core.nets.batchnorm import normalisations
from vssl_core.objective import Objective
from vssl_core.plugins import check_hooks
from vssl_core.requests import Group as ClipGroup
from vssl_core.requests import Request, complete, resolve
from vssl_core.run import checkpoint
from vssl_core.run.build import Chosen, Parts, build_parts, check_batch, normalisation_of, recipe_of
from vssl_core.run.ensemble import StepInput, StepOutput, autocast, check_finite
from vssl_core.run.extract import STREAM, Extractor
from vssl_core.run.files import write_atomically, write_json
from vssl_core.run.ledger import Ledger
from vssl_core.run.logs import observers
from vssl_core.run.memory import keep_pages
from vssl_core.run.optim import build_optimizer, build_schedule, optimizer_state, restore_optimizer, set_learning_rate
from vssl_core.run.report import Report
from vssl_core.run.weights import save_backbone
from vssl_core.windows import Sample


class Interrupted(VsslError):
    """A signal asked the run to leave; it has saved."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(
            f"{folder}: interrupted by {signal.Signals(number).name} and saved; start the same command again to go on"
        )
        self.exit_code = 128 + number


class Run:
    """A training run: built, perhaps restored, and trained. Plugins see it in every announcement."""

    def __init__(self, chosen: Chosen, splits: Splits, folder: Path) -> None:
        config = chosen.config
        check_batch(config, splits.train)
        self.config, self.folder, self.videos = config, folder, splits.train
        self.manager = chosen.manager
        self.epoch = 0  # from 0
        self.position = 0  # steps done in this epoch
        self.step = 0  # steps done in the run
        self.order: np.ndarray | None = None  # of this epoch
        self._saved_at = time.monotonic()
        torch.set_num_threads(config.device.threads)
        self.device = choose_device(config)
        if self.device.type == "cpu":
            keep_pages()
        parts = build_parts(chosen, len(splits.train), self._initial_backbone)
        self.ensemble = parts.ensemble.to(self.device)
        self.plan = parts.plan
        self._start_from_init()
        self._arrange()
        self._parts, self._normalisation = parts, normalisation_of(config)
        self.optimizer = build_optimizer(self.ensemble, config.optim)
        self.schedule = build_schedule(config.optim, config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.device.precision == "float16")
        self.ledger = Ledger(
            folder / "skipped.jsonl" if rank() == 0 else None, len(splits.train), config.data.max_bad_fraction
        )
        cutter = Cutter(parts.plan.groups, parts.recipes, config.data.decoder)
        self._loader = ClipLoader(
            Clips(splits.train, cutter, config.seed), config.data.workers, pin=self.device.type == "cuda"
        )
        self._register()

    # What plugins read -----------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> nn.Module:
        """The net that is trained."""
        return self.ensemble.backbone

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """The objectives by name."""
        return dict(self.ensemble.objectives.items())

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in this epoch's order, or in the whole list before there is one."""
        return len(self.videos if self.order is None else self.order) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as is known now."""
        return self.step - self.position + (self.config.epochs - self.epoch) * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return (self.epoch + self.position / max(self.steps_per_epoch, 1)) / self.config.epochs

    @property
    def logs_now(self) -> bool:
        """Whether the step that was just done is one to log."""
        return self.step % self.config.log.every_steps == 0

    def extract(
        self, request: Request, encode: Callable[[Any], Mapping[str, Tensor]], train: bool = False
    ) -> dict[str, Any]:
        """{name: (N, ...)} of `encode(batch)` for every training video, once, in index order; `batch["clips"]` are the views.

        Windows depend on the video alone. Also 'index' (N,) and 'unreadable'. Equal on every rank; leaves no trace.
        """
        settings = self.config.clip_request()
        group = ClipGroup(complete(resolve(request, settings), settings), {f"{STREAM}/clips": request.least})
        extractor = Extractor(
            self.videos,
            group,
            recipe_of(self.config, group),
            self._normalisation,
            self.config.data.decoder,
            self.config.seed,
            self.config.data.workers,
            max(self.config.batch_size // world_size(), 1),
            self.device,
        )
        return extractor.run(
            self.backbone, encode, train=train, modules=[objective for _, objective in self.ensemble.objectives.items()]
        )

    # The loop --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last epoch; resumes where the run stands. Raises `Interrupted` after a signal, once it has saved."""
        error: BaseException | None = None
        with signals() as asked:
            try:
                self.manager.hook.vssl_run_start(run=self)
                while self.epoch < self.config.epochs:
                    self._train_epoch(asked)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._loader.close()
                self.manager.hook.vssl_run_end(run=self, error=error)

    def _train_epoch(self, asked: Callable[[], int]) -> None:
        if self.order is None:  # a resumed epoch has its order, and was announced before
            self.manager.hook.vssl_epoch_start(run=self)
            self.order = self._draw_order()
        waiting = time.perf_counter()
        for raw in self._loader.load(self._batches()):
            started = time.perf_counter()
            self.ledger.write(raw.ledger)
            report = self._timed_step(raw, waiting, started)
            self.manager.hook.vssl_step_end(run=self, report=report)
            self._save_if_due(report)
            self._leave_if(asked())
            waiting = time.perf_counter()
        self.epoch, self.position, self.order = self.epoch + 1, 0, None
        self.save(epoch_end=True)
        self.manager.hook.vssl_epoch_end(run=self)

    def step_on(self, raw: RawBatch) -> Report:
        """One optimizer step on this rank's share of a global batch."""
        config, progress = self.config, self.progress
        weights = {name: config.weight(name, progress * config.epochs) for name in self.ensemble.objectives}
        set_learning_rate(self.optimizer, self.schedule(progress), config.optim.lr)
        self.optimizer.zero_grad(set_to_none=True)
        outputs, unreached = [], None
        for number, micro in enumerate(self._microbatches(raw, weights, progress)):
            last = number == config.optim.accumulate - 1
            with nullcontext() if last or self.module is self.ensemble else self.module.no_sync():
                with autocast(self.device, config.device.precision):
                    output = self.module(micro)
                if self.device.type == "cpu":
                    check_finite(output.losses, self.step + 1)
                if output.total.requires_grad:
                    self.scaler.scale(output.total / config.optim.accumulate).backward()
            unreached = self.ensemble.unreached if unreached is None else unreached & self.ensemble.unreached
            outputs.append(output)
        for parameter in unreached or ():
            parameter.grad = None
        self.scaler.unscale_(self.optimizer)
        self.manager.hook.vssl_backward_end(run=self)
        norm = (
            nn.utils.clip_grad_norm_(self.ensemble.parameters(), config.optim.clip_norm)
            if config.optim.clip_norm
            else None
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average_statistics()
        self.step, self.position = self.step + 1, self.position + 1
        return self._report(outputs, raw, weights, norm)

    # The step's parts ------------------------------------------------------------------------------------------------

    def _timed_step(self, raw: RawBatch, waiting: float, started: float) -> Report:
        from dataclasses import replace

        clips = sum(group["clips"].shape[0] * group["clips"].shape[1] for group in raw.groups)
        report = self.step_on(raw.to(self.device))
        whole = max(time.perf_counter() - waiting, 1e-9)
        return replace(report, clips_per_second=clips / whole, data_wait=(started - waiting) / whole)

    def _microbatches(self, raw: RawBatch, weights: Mapping[str, float], progress: float) -> Iterator[StepInput]:
        pieces = self.config.optim.accumulate
        rows = len(raw.index) // pieces
        for piece in range(pieces):
            part = raw.slice(piece * rows, (piece + 1) * rows) if pieces > 1 else raw
            samples = [Sample(self.config.seed, visit.epoch, visit.visit, visit.video) for visit in part.visits]
            yield StepInput(
                clips=prepare(part, self.plan.groups, self._parts.recipes, self._normalisation),
                index=part.index,
                samples=samples,
                weights=weights,
                seed=self.config.seed,
                step=self.step,
                epoch=self.epoch,
                progress=progress,
                offset=rank() * pieces + piece,
            )

    def _average_statistics(self) -> None:
        if world_size() > 1:
            norms = normalisations(self.ensemble)
            average(statistic for norm in norms for statistic in (norm.running_mean, norm.running_var))

    def _report(
        self, outputs: Sequence[StepOutput], raw: RawBatch, weights: Mapping[str, float], norm: Tensor | None
    ) -> Report:
        values = {
            **{
                ("loss", name): torch.stack([output.losses[name] for output in outputs]).mean()
                for name in outputs[0].losses
            },
            **{
                ("metric", name): torch.stack([output.metrics[name] for output in outputs]).mean()
                for name in outputs[0].metrics
            },
            ("loss", ""): torch.stack([output.total.detach().float() for output in outputs]).mean(),
        }
        if world_size() > 1 and (self.step % self.config.log.every_steps == 0):
            average(values.values())
        kept = {
            name: gather_kept(
                {key: torch.cat([output.kept[name][key] for output in outputs]) for key in outputs[0].kept[name]}
            )
            for name in outputs[0].kept
        }
        index = gather_kept({"index": raw.index})["index"] if kept else raw.index
        return Report(
            step=self.step,
            epoch=self.epoch,
            loss=values.pop(("loss", "")),
            losses={name: value for (kind, name), value in values.items() if kind == "loss"},
            metrics={name: value for (kind, name), value in values.items() if kind == "metric"},
            weights=weights,
            learning_rate=self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["scale"],
            kept=kept,
            index=index,
            gradient_norm=norm,
        )

    # Epochs ----------------------------------------------------------------------------------------------------------

    def _draw_order(self) -> np.ndarray:
        order = None
        if rank() == 0:
            offers = [(plugin, order) for plugin, order in self._asked_for_order() if order is not None]
            if len(offers) > 1:
                raise PluginError(
                    f"plugins: {' and '.join(name for name, _ in offers)} both decide the order of an epoch; choose one of them"
                )
            if offers:
                order = self._checked_order(*offers[0])
            else:
                order = Sample(self.config.seed, self.epoch, 0, -1).generator("order").permutation(len(self.videos))
        order = np.asarray(broadcast(order), dtype=np.int64)
        if len(order) < self.config.batch_size:
            raise PluginError(
                f"plugins: the order of epoch {self.epoch} holds {len(order)} videos, less than one batch of {self.config.batch_size}"
            )
        return order

    def _asked_for_order(self) -> list[tuple[str, Any]]:
        hook = self.manager.hook.vssl_epoch_order
        return [
            (implementation.plugin_name, implementation.function(run=self)) for implementation in hook.get_hookimpls()
        ]

    def _checked_order(self, name: str, order: Any) -> np.ndarray:
        order = np.asarray(order)
        if (
            order.ndim != 1
            or not np.issubdtype(order.dtype, np.integer)
            or (len(order) and not (0 <= order.min() and order.max() < len(self.videos)))
        ):
            raise PluginError(
                f"plugin '{name}': vssl_epoch_order must give whole numbers from 0 to {len(self.videos) - 1}"
            )
        return order

    def _batches(self) -> list[list[Any]]:
        """This rank's contiguous share of each global batch that is still to come."""
        size = self.config.batch_size
        share = size // world_size()
        visits = visits_of(self.order, self.epoch)
        starts = range(self.position * size, len(visits) - size + 1, size)
        return [visits[start + rank() * share : start + (rank() + 1) * share] for start in starts]

    # Saving ----------------------------------------------------------------------------------------------------------

    def _save_if_due(self, report: Report) -> None:
        if self.position == self.steps_per_epoch:
            return  # the end of the epoch saves
        due = self.step % self.config.checkpoint.every_steps == 0
        if due or time.monotonic() - self._saved_at > 60 * self.config.checkpoint.every_minutes:
            check_finite({**report.losses, "loss": report.loss}, self.step)
            self.save()

    def _leave_if(self, number: int) -> None:
        if any_rank(bool(number)):
            self.save()
            raise Interrupted(number or signal.SIGTERM, self.folder)

    def save(self, epoch_end: bool = False) -> None:
        """Write the checkpoint, and at the end of an epoch the backbone alone; whole, or the old ones stay."""
        self._saved_at = time.monotonic()
        if rank() != 0:
            return
        path = self.folder / checkpoint.NAME
        checkpoint.save(path, self.state())
        if epoch_end:
            save_backbone(self.folder, self.backbone, self.card())
            every = self.config.checkpoint.keep_every_epochs
            if self.epoch == self.config.epochs or (every and self.epoch % every == 0):
                _keep(path, self.folder / "checkpoints" / f"epoch_{self.epoch:04d}.pt")

    def state(self) -> dict[str, Any]:
        """All that the run is, as tensors and plain values."""
        return {
            "config": to_yaml(to_tree(self.config)),
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "order": None if self.order is None else torch.from_numpy(self.order),
            "ensemble": self.ensemble.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "generators": checkpoint.generators(),
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Put a saved state back. Raises `CheckpointError` for another architecture."""
        checkpoint.restore_module(self.ensemble, state["ensemble"], where)
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        checkpoint.restore_generators(state["generators"])
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.order = None if state["order"] is None else state["order"].numpy()

    def card(self) -> dict[str, Any]:
        """What `backbone.json` tells: the fingerprint, the normalisation, and how long it was trained."""
        clip = self.config.clip
        return {
            **fingerprint(self.backbone, clip.frames, clip.size),
            "normalisation": clip.normalisation,
            "epochs": self.epoch,
            "steps": self.step,
            "seed": self.config.seed,
            "plugins": list(self.config.plugins),
        }

    # Building --------------------------------------------------------------------------------------------------------

    def _initial_backbone(self, backbone: nn.Module) -> None:
        """Load `init` before teachers are copied from the backbone."""
        if self.config.init:
            checkpoint.start_from(nn.ModuleDict({"backbone": backbone}), Path(self.config.init))

    def _start_from_init(self) -> None:
        if self.config.init:
            missing, extra = checkpoint.start_from(self.ensemble, Path(self.config.init))
            if rank() == 0:
                print(
                    f"init: {self.config.init}: {len(missing)} names start afresh{_first(missing)}, {len(extra)} are not used{_first(extra)}"
                )

    def _arrange(self) -> None:
        """Memory layout, compilation and ranks."""
        if self.config.device.channels_last:
            self.ensemble.backbone.to(memory_format=torch.channels_last_3d)
        if self.config.device.compile:
            self.ensemble.backbone.compile()
        self.module: nn.Module = self.ensemble
        if world_size() > 1:
            self.module = DistributedDataParallel(
                self.ensemble,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
            )

    def _register(self) -> None:
        for name, objective in self.ensemble.objectives.items():
            check_hooks(self.manager, objective, f"plugin '{name}'")
            self.manager.register(objective, f"{name}/objective")
        for name, observer in observers(self.folder, self.config.log.tensorboard).items():
            self.manager.register(observer, name)


def _first(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def _keep(path: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(path, place)  # the next checkpoint is a new file, so this one stays as it is
    except OSError:
        shutil.copyfile(path, place)


def choose_device(config: RunConfig) -> torch.device:
    """The device of this rank."""
    kind = config.device.kind
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device.kind: cuda is asked for and torch sees no GPU; run `vssl doctor`, or set device.kind=auto"
        )
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


class signals:
    """While it is open, Ctrl-C and SIGTERM are remembered instead of raised; a second one is raised as ever."""

    def __enter__(self) -> Callable[[], int]:
        self.asked = 0
        self.before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self.asked

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.asked = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


# Folders --------------------------------------------------------------------------------------------------------------


def open_run(chosen: Chosen, splits: Splits, folder: Path) -> Run:
    """A new run in an empty folder, or the one that is there, restored; another configuration in it is an error."""
    state = _saved(chosen.config, folder)
    run = Run(chosen, splits, folder)
    if state is not None:
        run.restore(state, str(folder / checkpoint.NAME))
    elif rank() == 0:
        write_atomically(folder / "config.yaml", to_yaml(to_tree(chosen.config)).encode())
    if rank() == 0:
        write_json(folder / "plan.json", run.plan.describe())
    return run


def _saved(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--run {folder}: is a file; give a folder")
    written = folder / "config.yaml"
    if written.exists():
        changed = differences(to_tree(build(RunConfig, read_yaml(str(written)), str(written))), to_tree(config))
        if changed:
            raise ConfigError(
                f"--run {folder}: holds a run with another configuration ({'; '.join(changed)}); choose another --run, or give the same configuration to go on"
            )
    path = folder / checkpoint.NAME
    if path.exists():
        return checkpoint.load(path)
    if folder.exists() and any(folder.iterdir()) and not written.exists():
        raise ConfigError(f"--run {folder}: is not empty and holds no run; choose another folder")
    return None


def read_run(folder: Path) -> RunConfig:
    """The configuration of a run folder."""
    path = folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"--run {folder}: holds no run (there is no config.yaml); give the folder of a run")
    return build(RunConfig, read_yaml(str(path)), str(path))


def plan_line(parts: Parts) -> str:
    """The groups of a plan, readable."""
    return json.dumps(parts.plan.describe())
