"""The backbone and the objectives as one module: views in, one weighted loss out. The one thing that is wrapped for several ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor, nn

from vssl_core.data.batches import PreparedClip
from vssl_core.errors import VsslError
from vssl_core.nets.batchnorm import normalisations, still
from vssl_core.objective import Combiner, Objective, PluginConfig, Terms, is_scalar
from vssl_core.requests import Plan
from vssl_core.views import Batch, Features, View
from vssl_core.windows import Sample


class ObjectiveError(VsslError):
    """An objective raised, or gave back something that cannot be trained on; the text names it."""


class NonFiniteError(VsslError):
    """A loss is not a finite number."""


class WeightedSum(Combiner):
    """The default: the sum of weight times loss."""

    Config = PluginConfig

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: tuple[Tensor, ...]) -> Tensor:
        """The total, a scalar."""
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


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
    offset: int = 0  # of this microbatch among all of the step


@dataclass
class StepOutput:
    """What one microbatch gave: the total to differentiate, and everything to log and keep, detached."""

    total: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)  # {'stor/space': scalar}
    metrics: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {objective: {name: (B, ...)}}
    forwards: int = 0


class Ensemble(nn.Module):
    """Backbone, objectives and combiner. `forward` lets each objective ask for its views; the first to ask pays the forward."""

    def __init__(
        self, backbone: nn.Module, objectives: Mapping[str, Objective], combiner: Combiner, plan: Plan
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objectives = Objectives(objectives)
        self.combiner = combiner
        self.plan = plan
        self.forwards = 0  # of the backbone, ever: counted for `--dry-run`
        self.unreached: set[nn.Parameter] = set()  # parameters that no term in force reached in the last forward
        self._reach: dict[tuple, list[nn.Parameter]] = {}

    def forward(self, step: StepInput) -> StepOutput:
        """The weighted loss of one microbatch."""
        norms = normalisations(self)
        views = [[self._view(clip, step, norms) for clip in group] for group in step.clips]
        active = [name for name in self.objectives if step.weights[name] > 0]
        idle = [name for name in self.objectives if step.weights[name] <= 0]
        before, output, sums = self.forwards, StepOutput(step.index.new_zeros((), dtype=torch.float32)), {}
        for name in active:
            terms = self._ask(name, step, views, norms)
            if terms.losses:
                sums[name] = torch.stack([loss.float() for loss in terms.losses.values()]).sum()
            _record(output, name, terms)
        with torch.no_grad(), still(norms):  # weight 0: evaluated and logged, and nothing moves
            for name in idle:
                _record(output, name, self._ask(name, step, views, norms))
        if sums:
            shared = tuple(
                view.features.map
                for group in views
                for view in group
                if view.features.asked and view.features.map.requires_grad
            )
            output.total = self.combiner(sums, step.weights, shared)
        output.total = self._anchor(output, step)
        output.forwards = self.forwards - before
        return output

    def _view(self, clip: PreparedClip, step: StepInput, norms: list) -> View:
        return View(clip.clip, clip.tail, clip.windows, clip.measures, Features(lambda: self._encode(clip.clip)))

    def _encode(self, clip: Tensor) -> dict[str, Tensor]:
        self.forwards += 1
        return {name: stage.float() for name, stage in self.backbone(clip).items()}

    def _ask(self, name: str, step: StepInput, views: list[list[View]], norms: list) -> Terms:
        def private(clip: Tensor) -> Features:
            with still(norms):
                stages = self._encode(clip)
            return Features(lambda: stages)

        slots = {}
        for slot in self._slots(name):
            group, count = self.plan.find(f"{name}/{slot}")
            slots[slot] = tuple(views[group][:count])
        batch = Batch(name, slots, step.index, step.samples, epoch=step.epoch, progress=step.progress, encode=private)
        torch.manual_seed(_seed(step.seed, step.step, step.offset, name))
        try:
            terms = self.objectives[name](batch)
        except VsslError:
            raise
        except Exception as error:
            shapes = {slot: [tuple(view.clip.shape) for view in seen] for slot, seen in slots.items()}
            raise ObjectiveError(
                f"objective '{name}': {type(error).__name__}: {error} (it saw clips of shape {shapes})"
            ) from error
        _check_terms(name, terms, trained=torch.is_grad_enabled())
        return terms

    def _slots(self, name: str) -> list[str]:
        return [
            slot.partition("/")[2]
            for group in self.plan.groups
            for slot in group.members
            if slot.rsplit("/", 1)[0] == name
        ]

    def _anchor(self, output: StepOutput, step: StepInput) -> Tensor:
        """Tie parameters that no term reaches into the graph, so that all ranks wait for the same gradients; remember which they are."""
        if not torch.is_grad_enabled():
            return output.total
        key = (step.epoch, tuple(output.losses), tuple(name for name, weight in step.weights.items() if weight > 0))
        if key not in self._reach:
            reached = _reached(output.total)
            self._reach = {
                key: [
                    parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in reached
                ]
            }
        unreached = self._reach[key]
        self.unreached = set(unreached)
        return _Anchor.apply(output.total, *unreached) if unreached else output.total


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


def _record(output: StepOutput, name: str, terms: Terms) -> None:
    output.losses.update({f"{name}/{term}": loss.detach().float() for term, loss in terms.losses.items()})
    output.metrics.update(
        {f"{name}/{term}": torch.as_tensor(value).detach().float() for term, value in terms.metrics.items()}
    )
    if terms.keep:
        output.kept[name] = {key: rows.detach() for key, rows in terms.keep.items()}


def _check_terms(name: str, terms: Terms, trained: bool) -> None:
    if not isinstance(terms, Terms):
        raise ObjectiveError(f"objective '{name}': forward must return vssl_core.Terms, got {type(terms).__name__}")
    for term, loss in terms.losses.items():
        if not is_scalar(loss):
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ObjectiveError(f"objective '{name}': loss '{term}' must be a scalar tensor, got {shape}; average it")
        if trained and not loss.requires_grad and float(loss) != 0.0:
            raise ObjectiveError(
                f"objective '{name}': loss '{term}' is detached from every parameter; leave it out while it is not in force, or report it as a metric"
            )


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Raise `NonFiniteError` naming the terms that are not finite numbers."""
    if losses and not bool(torch.isfinite(torch.stack(list(losses.values()))).all()):
        bad = ", ".join(f"{name} = {float(loss)}" for name, loss in losses.items() if not bool(torch.isfinite(loss)))
        raise NonFiniteError(
            f"step {step}: {bad}; the last checkpoint is untouched: lower optim.lr or the weight of this objective and start again"
        )


def _seed(seed: int, step: int, offset: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{step}/{offset}/{name}".encode(), digest_size=6).digest(), "little")


def autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext:
    """The precision that forwards run in."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
