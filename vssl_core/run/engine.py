"""The run: one folder, one loop. Read `train`, `_train_epoch` and `step_on` from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vssl_core.config import to_tree, to_yaml
from vssl_core.data.batches import prepare
from vssl_core.data.clips import Batches, ClipLoader, Clips, Cutter, visits_of
from vssl_core.data.raw import RawBatch
from vssl_core.data.sources import Splits
from vssl_core.distributed import any_rank, average, gather_objects, rank, world_size
from vssl_core.errors import CheckpointError, DataError
from vssl_core.joining import Group as ClipGroup
from vssl_core.joining import complete, resolve
from vssl_core.nets.backbones import fingerprint
from vssl_core.objective import Objective
from vssl_core.plugins import listen
from vssl_core.requests import Request
from vssl_core.run import checkpoint, saving
from vssl_core.run.build import Chosen, build_parts, check_batch, choose_device, normalisation_of, recipe_of
from vssl_core.run.ensemble import StepInput, StepOutput
from vssl_core.run.extract import STREAM, Extractor
from vssl_core.run.ledger import Ledger
from vssl_core.run.logs import observers, shown
from vssl_core.run.memory import keep_pages
from vssl_core.run.optim import build_optimizer, build_schedule, optimizer_state, restore_optimizer, set_learning_rate
from vssl_core.run.order import draw_order
from vssl_core.run.precision import autocast, sound_backward
from vssl_core.run.report import Report, merge
from vssl_core.run.seeds import reseed
from vssl_core.run.signals import Interrupted, Signals
from vssl_core.run.together import raise_together
from vssl_core.windows import Sample


class Run:
    """A training run: built, perhaps restored, and trained. Plugins see it in every announcement."""

    def __init__(self, chosen: Chosen, splits: Splits, folder: Path, *, resumes: bool = False) -> None:
        """Build all parts; nothing is read or written yet but `init`, which a run that `resumes` has behind it."""
        config = chosen.config
        check_batch(config, splits.train, resumes=resumes)
        self.config, self.folder, self.videos = config, folder, splits.train
        self.manager = chosen.manager
        self.epoch = 0  # from 0
        self.position = 0  # steps done in this epoch
        self.step = 0  # steps done in the run
        self.order: np.ndarray | None = None  # of this epoch
        self.report: Report | None = None  # of the last step
        self._notes: dict[str, Tensor] = {}  # what observers have measured in this step
        self._saved_at = time.monotonic()
        self._closing = False  # restored from the end of an epoch, which is still to be announced
        torch.set_num_threads(config.device.threads)
        self.device = choose_device(config)
        if self.device.type == "cpu":
            keep_pages()
        init = None if resumes or not config.init else Path(config.init)
        parts = build_parts(chosen, len(splits.train), lambda backbone: checkpoint.start_backbone(backbone, init))
        self.ensemble, self.plan, self._recipes = parts.ensemble.to(self.device), parts.plan, parts.recipes
        checkpoint.start_all(self.ensemble, init)
        self.module = self._arranged()
        self._normalisation = normalisation_of(config)
        self.optimizer = build_optimizer(self.ensemble, config.optim)
        self.schedule = build_schedule(config.optim, config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.device.precision == "float16")
        ledger = folder / "skipped.jsonl" if rank() == 0 else None
        self.ledger = Ledger(ledger, len(splits.train), config.data.max_bad_fraction)
        clips = Clips(splits.train, Cutter(parts.plan.groups, parts.recipes, config.data.decoder), config.seed)
        self._loader = ClipLoader(clips, config.data.workers, pin=self.device.type == "cuda")
        self._register(chosen)

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
    def epochs_done(self) -> float:
        """Epochs since the start, this one's share included."""
        return self.epoch + self.position / max(self.steps_per_epoch, 1)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.epochs_done / self.config.epochs

    @property
    def logs_now(self) -> bool:
        """Whether the step that was just done is one to log."""
        return self.step % self.config.log.every_steps == 0

    def note(self, name: str, value: Tensor | float) -> None:
        """Log a number with the step that is under way, beside the metrics; an observer's name comes first in it."""
        self._notes[name] = torch.as_tensor(value, dtype=torch.float32, device=self.device).detach()

    def extract(
        self, request: Request, encode: Callable[[Any], Mapping[str, Tensor]], train: bool = False
    ) -> dict[str, Any]:
        """{name: (N, ...)} of `encode(batch)` for every training video, once, in index order; `batch["clips"]` are
        the views.

        Windows depend on the video alone. Also 'index' (N,) and 'unreadable'. Equal on every rank; leaves no trace.
        """
        settings, data = self.config.clip_request(), self.config.data
        group = ClipGroup(complete(resolve(request, settings), settings), {f"{STREAM}/clips": request.least})
        extractor = Extractor(
            self.videos,
            group,
            recipe_of(self.config, group),
            self._normalisation,
            data.decoder,
            self.config.seed,
            data.workers,
            max(self.config.batch_size // world_size(), 1),
            self.device,
        )
        objectives = list(self.objectives.values())
        with shown("extracting", total=-(-len(self.videos) // world_size())) as advance:
            return extractor.run(self.backbone, encode, train=train, modules=objectives, advance=advance)

    # The loop --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last epoch; resumes where the run stands.

        Raises `Interrupted` after a signal, once it has saved.
        """
        error: BaseException | None = None
        with Signals() as signals:
            try:
                self._start()
                while self.epoch < self.config.epochs:
                    self._train_epoch(signals)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._loader.close()
                self._announce("vssl_run_end", error=error)

    def _start(self) -> None:
        generators = checkpoint.generators()  # what a plugin draws here is drawn again at each restart
        self._announce("vssl_run_start")
        checkpoint.restore_generators(generators)
        if self._closing and self.epoch < self.config.epochs:
            self._announce("vssl_epoch_end")

    def _train_epoch(self, signals: Signals) -> None:
        if self.order is None:  # a resumed epoch has its order, and was announced before
            self._announce("vssl_epoch_start")
            self.order = draw_order(self)
        waiting = time.perf_counter()
        for raw in self._read():
            self.report = self._timed_step(raw, waiting)
            self._announce("vssl_step_end", report=self.report)
            asked = self._told(raw, signals.asked)
            if asked:
                self._leave(asked)
            self._save_if_due()
            waiting = time.perf_counter()
        self.epoch, self.position, self.order = self.epoch + 1, 0, None
        self.save(epoch_end=True)
        self._announce("vssl_epoch_end")

    def step_on(self, raw: RawBatch) -> Report:
        """One optimizer step on this rank's share of a global batch."""
        config = self.config
        epochs = self.epochs_done
        weights = {name: config.weight(name, epochs) for name in self.ensemble.objectives}
        rate = self.schedule(epochs / config.epochs)
        set_learning_rate(self.optimizer, rate, config.optim.lr)
        self.optimizer.zero_grad(set_to_none=True)
        outputs = [self._backward(micro) for micro in self._microbatches(raw, weights)]
        norm = self._update()
        self._average_statistics()
        self.step, self.position = self.step + 1, self.position + 1
        merged = merge(outputs, raw.index, over_ranks=world_size() > 1 and self.logs_now)
        return Report(
            step=self.step,
            epoch=self.epoch,
            loss=merged.loss,
            losses=merged.losses,
            metrics={**merged.metrics, **self._noted()},
            weights=weights,
            learning_rate=rate,
            index=merged.index,
            kept=merged.kept,
            gradient_norm=norm,
        )

    # The step's parts ------------------------------------------------------------------------------------------------

    def _timed_step(self, raw: RawBatch, waiting: float) -> Report:
        started = time.perf_counter()
        clips = sum(len(clip.frames) for group in raw.groups for clip in group)
        report = self.step_on(raw.to(self.device))
        whole = max(time.perf_counter() - waiting, 1e-9)
        return replace(report, clips_per_second=clips / whole, data_wait=(started - waiting) / whole)

    def _microbatches(self, raw: RawBatch, weights: Mapping[str, float]) -> Iterator[StepInput]:
        pieces = self.config.optim.accumulate
        rows = len(raw.index) // pieces
        for piece in range(pieces):
            part = raw.slice(piece * rows, (piece + 1) * rows) if pieces > 1 else raw
            yield StepInput(
                clips=prepare(part, self.plan.groups, self._recipes, self._normalisation),
                index=part.index,
                samples=[Sample(self.config.seed, visit.epoch, visit.visit, visit.video) for visit in part.visits],
                weights=weights,
                seed=self.config.seed,
                step=self.step,
                epoch=self.epoch,
                progress=self.progress,
                piece=piece,
                pieces=pieces,
            )

    def _backward(self, micro: StepInput) -> StepOutput:
        """Forward and backward of one microbatch; ranks exchange gradients with the last."""
        exchanges = micro.piece == micro.pieces - 1 or self.module is self.ensemble
        with nullcontext() if exchanges else self.module.no_sync():
            with autocast(self.device, self.config.device.precision):
                output = self.module(micro)
            with sound_backward(self.device, self.config.device.precision):  # observers may differentiate too
                self._announce("vssl_forward_end", losses=output.sums, weights=micro.weights, shared=output.shared)
                output.sums, output.shared = {}, None  # nothing holds the graph longer than the backward pass
                if output.total.requires_grad:
                    share = output.total / micro.pieces if micro.pieces > 1 else output.total
                    self.scaler.scale(share).backward()
        return output

    def _update(self) -> Tensor | None:
        """Move the weights that have gradients; the norm of all gradients where they are clipped."""
        for parameter in self.ensemble.take_unreached():
            parameter.grad = None  # not moved and not decayed
        moves = any(
            parameter.grad is not None for group in self.optimizer.param_groups for parameter in group["params"]
        )
        if moves:
            self.scaler.unscale_(self.optimizer)
        self._announce("vssl_backward_end")
        largest = self.config.optim.clip_norm
        norm = nn.utils.clip_grad_norm_(self.ensemble.parameters(), largest) if largest else None
        if moves:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _noted(self) -> dict[str, Tensor]:
        notes, self._notes = self._notes, {}
        return notes

    def _average_statistics(self) -> None:
        if world_size() > 1:
            average(statistic for norm in self.ensemble.norms for statistic in (norm.running_mean, norm.running_var))

    def _read(self) -> Iterator[RawBatch]:
        """What the loader gives; an error that one rank meets there is raised on all, so that none waits for it."""
        lost: list[dict[str, Any]] = []
        batches = self._loader.load(self._batches(), lost=lost.extend)
        while True:
            try:
                raw, error = next(batches, None), None
            except Exception as raised:
                raw, error = None, raised
            if any_rank(error is not None):
                self._hear(lost)
                raise_together(error)
            if raw is None:
                return
            yield raw

    def _hear(self, lost: list[dict[str, Any]]) -> None:
        with suppress(DataError):  # too many of them: the batch that failed has more to tell
            self.ledger.write(line for lines in gather_objects(lost) for line in lines)

    def _batches(self) -> Batches:
        """This rank's contiguous share of each global batch that is still to come."""
        size = self.config.batch_size
        share = size // world_size()
        starts = range(self.position * size + rank() * share, len(self.order) - size + rank() * share + 1, size)
        return Batches(visits_of(self.order, self.epoch), starts, share)

    def _announce(self, moment: str, **told: Any) -> None:
        """Tell every plugin; what it draws then depends on the moment alone, and is the same on every rank."""
        hook = getattr(self.manager.hook, moment)
        if hook.get_hookimpls():
            reseed(self.config.seed, f"{moment}/{self.step}")
            hook(run=self, **told)

    def _told(self, raw: RawBatch, asked: int) -> int:
        """Hear of unreadable videos and signals on any rank; the signal to leave on, or 0."""
        if not any_rank(bool(raw.ledger or asked)):
            return 0
        told = gather_objects((raw.ledger, asked))
        self.ledger.write(line for lines, _ in told for line in lines)
        return max(number for _, number in told)

    # Saving ----------------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        if self.position == self.steps_per_epoch:
            return  # the end of the epoch saves
        due = self.step % self.config.checkpoint.every_steps == 0
        if due or time.monotonic() - self._saved_at > 60 * self.config.checkpoint.every_minutes:
            self.save()

    def _leave(self, number: int) -> None:
        self.save()
        any_rank(True)  # no rank leaves before the one that saves is done
        raise Interrupted(number, self.folder)

    def save(self, epoch_end: bool = False) -> None:
        """Write the checkpoint, and at the end of an epoch the backbone; `NonFiniteError` where a run went astray."""
        self._saved_at = time.monotonic()
        saving.save(self, epoch_end)

    def state(self) -> dict[str, Any]:
        """All that the run is, as tensors and plain values."""
        return {
            "config": to_yaml(to_tree(self.config)),
            "videos": self._list,
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "order": None if self.order is None else torch.from_numpy(self.order),
            "ensemble": self.ensemble.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "generators": checkpoint.generators(),
            "ranks": world_size(),
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Put a saved state back. Raises `CheckpointError` for another architecture or list of videos."""
        if state["videos"] != self._list:
            raise CheckpointError(
                f"{where}: was made with another list of videos ({state['videos'][0]} then, {len(self.videos)} now); "
                "put the videos back as they were, or begin anew in another --run"
            )
        checkpoint.restore_module(self.ensemble, state["ensemble"], where)
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        checkpoint.restore_generators(state["generators"])
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.order = None if state["order"] is None else state["order"].numpy()
        self._closing = self.order is None and self.epoch > 0
        checkpoint.tell_ranks(state, where, synchronised=self.config.device.sync_batch_norm)

    @cached_property
    def _list(self) -> list[Any]:
        """What tells one list of videos from another, wherever it lies."""
        return [len(self.videos), self.videos.digest()]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the backbone is, whatever its weights."""
        return fingerprint(self.backbone, self.config.clip.frames, self.config.clip.size)

    # Building --------------------------------------------------------------------------------------------------------

    def _arranged(self) -> nn.Module:
        """The ensemble in its memory layout, compiled and over ranks where asked."""
        if self.config.device.channels_last:
            self.ensemble.backbone.to(memory_format=torch.channels_last_3d)
        if self.config.device.compile:
            self.ensemble.backbone.compile()
        if world_size() == 1:
            return self.ensemble
        places = [self.device.index] if self.device.type == "cuda" else None
        renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # since torch 2.13
        own_buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return DistributedDataParallel(self.ensemble, device_ids=places, **own_buffers)

    def _register(self, chosen: Chosen) -> None:
        for name, objective in self.ensemble.objectives.items():
            listen(self.manager, objective, f"{name}/objective", f"plugin '{name}'")
        for name, plugin in chosen.plugins.items():
            if plugin.observer:
                watcher = plugin.observer(chosen.options[name], name)
                listen(self.manager, watcher, f"{name}/observer", f"plugin '{name}'")
        for name, observer in observers(self.folder, self.config.log.tensorboard).items():
            self.manager.register(observer, name)
