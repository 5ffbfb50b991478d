"""The backbone and the objectives as one module: views in, one weighted loss out.

The one thing that is wrapped for several ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from vssl_core.data.batches import PreparedClip
from vssl_core.distributed import rank, world_size
from vssl_core.errors import ConfigError, VsslError
from vssl_core.joining import Plan
from vssl_core.nets.batchnorm import normalisations, still
from vssl_core.objective import Combiner, Objective, PluginConfig, Shared, Terms, is_scalar
from vssl_core.run.precision import in_full
from vssl_core.run.seeds import reseed
from vssl_core.run.terms import ObjectiveError, check_finite_terms, check_terms, kind_of, seen
from vssl_core.views import Batch, Features, View
from vssl_core.windows import Sample


class WeightedSum(Combiner):
    """The default: the sum of weight times loss."""

    Config = PluginConfig

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        """The total, a scalar."""
        weighted = [loss if weights[name] == 1 else weights[name] * loss for name, loss in losses.items()]
        return add(weighted)


class Objectives(nn.Module):
    """The objectives by name. An nn.ModuleDict refuses names such as `type` or `train`; a plugin may be called so."""

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        for name, objective in objectives.items():
            self._modules[name] = objective

    def __getitem__(self, name: str) -> Objective:
        return self._modules[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterable[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def items(self) -> Iterable[tuple[str, Objective]]:
        """(name, objective) in the order of the config."""
        return self._modules.items()  # type: ignore[return-value]


@dataclass(frozen=True)
class StepInput:
    """One microbatch, and where in the run it stands."""

    clips: list[list[PreparedClip]]  # [group][clip]
    index: Tensor  # (B,)
    samples: list[Sample]
    weights: Mapping[str, float]
    seed: int
    step: int
    epoch: int
    progress: float
    piece: int = 0  # which microbatch of the step this is,
    pieces: int = 1  # of how many

    @cached_property
    def moment(self) -> str:
        """What torch's generators are seeded by: microbatches and ranks draw apart, as parts of a large batch would."""
        return f"{self.step}/{rank() * self.pieces + self.piece}"


@dataclass
class StepOutput:
    """What one microbatch gave: the total to differentiate, and everything to log and keep, detached."""

    total: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)  # {'stor/space': scalar}
    metrics: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {objective: {name: (B, ...)}}
    forwards: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)  # {objective: its loss}, still in the graph
    shared: Shared | None = None  # what they stand on


class Ensemble(nn.Module):
    """Backbone, objectives and combiner.

    `forward` lets each objective ask for its views; the first to ask pays the forward.
    """

    def __init__(
        self, backbone: nn.Module, objectives: Mapping[str, Objective], combiner: Combiner, plan: Plan
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objectives = Objectives(objectives)
        self.combiner = combiner
        self.plan = plan
        self.forwards = 0  # of the backbone, ever: counted for `--dry-run`
        self._unreached: set[nn.Parameter] | None = None  # several ranks: what no term in force reached in this step
        self._norms: list[nn.Module] | None = None
        self._readers: dict[str, list[tuple[str, int, int]]] = {}  # slots by objective: the plan does not change

    @property
    def norms(self) -> list:
        """The batch normalisations that keep running statistics, teachers' and heads' included."""
        if self._norms is None:
            self._norms = normalisations(self)
        return self._norms

    def forward(self, step: StepInput) -> StepOutput:
        """The weighted loss of one microbatch."""
        views = [[self._view(clip) for clip in group] for group in step.clips]
        before, output, sums = self.forwards, StepOutput(step.index.new_zeros((), dtype=torch.float32)), {}
        idle = []
        for name, objective in self.objectives.items():
            if not step.weights[name] > 0:
                idle.append((name, objective))
                continue
            terms = self._ask(name, objective, step, views)
            if terms.losses:
                sums[name] = add([loss.float() for loss in terms.losses.values()])
            _record(output, name, terms)
        if idle:
            with torch.no_grad(), still(self.norms):  # weight 0: evaluated and logged, and nothing moves
                for name, objective in idle:
                    _record(output, name, self._ask(name, objective, step, views))
        output.sums, output.shared = sums, self._shared(views)
        if sums:
            output.total = self._combine(sums, step, output.shared)
        if world_size() > 1 and torch.is_grad_enabled():
            output.total = self._anchor(output.total)
        output.forwards = self.forwards - before
        return output

    def _view(self, clip: PreparedClip) -> View:
        return View(clip.clip, clip.tail, clip.windows, clip.measures, Features(lambda: self._encode(clip.clip)))

    def _encode(self, clip: Tensor) -> dict[str, Tensor]:
        self.forwards += 1
        return {name: stage.float() for name, stage in self.backbone(clip).items()}

    def _encode_privately(self, clip: Tensor, statistics: bool) -> Features:
        with nullcontext() if statistics else still(self.norms):
            stages = self._encode(clip)
        return Features(lambda: stages)

    def _ask(self, name: str, objective: Objective, step: StepInput, views: list[list[View]]) -> Terms:
        slots = {slot: tuple(views[group][:count]) for slot, group, count in self._slots(name)}
        batch = Batch(
            name,
            slots,
            step.index,
            step.samples,
            epoch=step.epoch,
            progress=step.progress,
            encode=self._encode_privately,
        )
        reseed(step.seed, f"{step.moment}/{name}")
        try:
            terms = objective(batch)
        except VsslError:
            raise
        except Exception as error:
            if len(batch) == 1 and "more than 1 value per channel" in str(error):
                raise ConfigError(
                    f"batch_size: objective '{name}' saw one video at a time, and batch normalisation needs two; "
                    "raise it, or lower optim.accumulate or the number of ranks"
                ) from None
            raise ObjectiveError(f"objective '{name}': {type(error).__name__}: {error} ({seen(slots)})") from error
        check_terms(name, terms, slots, rows=len(batch), trained=torch.is_grad_enabled())
        check_finite_terms(name, terms, slots, step.step + 1)
        return terms

    def _slots(self, name: str) -> list[tuple[str, int, int]]:
        """The objective's slots, each with the number of its group and how many of its clips it reads."""
        if name not in self._readers:
            members = [slot for group in self.plan.groups for slot in group.members if slot.rsplit("/", 1)[0] == name]
            self._readers[name] = [(slot.partition("/")[2], *self.plan.find(slot)) for slot in members]
        return self._readers[name]

    def _shared(self, views: list[list[View]]) -> Shared:
        features = (view.features for group in views for view in group)
        return Shared(tuple(seen.map for seen in features if seen.asked and seen.map.requires_grad), self.backbone)

    def _combine(self, sums: Mapping[str, Tensor], step: StepInput, shared: Shared) -> Tensor:
        reseed(step.seed, f"{step.moment}/combine")
        with in_full(step.index.device):
            total = self.combiner(sums, step.weights, shared)
        trained = any(loss.requires_grad for loss in sums.values())
        if not is_scalar(total) or (trained and not total.requires_grad):
            where = f"combiner {type(self.combiner).__name__}"
            raise ObjectiveError(f"{where}: must give a scalar that depends on the losses, got {kind_of(total)}")
        return total

    def _anchor(self, total: Tensor) -> Tensor:
        """Tie parameters that no term reaches into the graph: every rank then waits for the same gradients."""
        reached = _reached(total)
        unreached = [
            parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in reached
        ]
        self._unreached = set(unreached) if self._unreached is None else self._unreached & set(unreached)
        return _Anchor.apply(total, *unreached) if unreached else total

    def take_unreached(self) -> set[nn.Parameter]:
        """The parameters that no microbatch of the step has reached though they have gradients, zeros.

        Then forgets them.
        """
        if self._unreached is None:  # as on one rank
            return set()
        unreached, self._unreached = self._unreached, None
        return unreached


class _Anchor(torch.autograd.Function):
    """The identity on its first input; the others get gradients of zero."""

    @staticmethod
    def forward(context, total: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        context.save_for_backward(*parameters)
        return total.clone()

    @staticmethod
    def backward(context, gradient: Tensor):  # type: ignore[override]
        return gradient, *(torch.zeros_like(parameter) for parameter in context.saved_tensors)


def _reached(total: Tensor) -> set[Tensor]:
    """The leaves that the graph of a scalar ends in."""
    leaves, seen, open_nodes = set(), set(), [total.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        open_nodes.extend(following for following, _ in node.next_functions)
    return leaves


def add(scalars: Sequence[Tensor]) -> Tensor:
    """Their sum; one alone is handed through, since each operation on a scalar costs as much as on many."""
    return scalars[0] if len(scalars) == 1 else torch.stack(list(scalars)).sum()


def _record(output: StepOutput, name: str, terms: Terms) -> None:
    for term, loss in terms.losses.items():
        output.losses[f"{name}/{term}"] = loss.detach().float()
    for term, value in terms.metrics.items():
        output.metrics[f"{name}/{term}"] = torch.as_tensor(value).detach().float()
    if terms.keep:
        output.kept[name] = {key: rows.detach() for key, rows in terms.keep.items()}
