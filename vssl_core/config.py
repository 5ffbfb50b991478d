"""The typed configuration: one file per experiment, `key=value` overrides, and every unknown or unused key an error.

Everything below `plugins.<name>` belongs to the plugin; everything else to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from vssl_core.errors import ConfigError, did_you_mean
from vssl_core.looks import AppearanceSettings
from vssl_core.plain import Model, build, flatten, from_yaml, read_yaml, to_tree, to_yaml
from vssl_core.requests import Appearance, Boxes, Flips, Independent, Request, Strides, Turns


class Section(BaseModel):
    """A part of the configuration: frozen and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneSection(Section):
    options: dict[str, Any] = Field(default_factory=dict, description="what its builder takes, as tiny's channels")
    name: str = Field(
        "tiny", description="which backbone is trained (`vssl plugins` lists those of plugins, docs/backbones.md ours)"
    )


class DataSection(Section):
    source: str = Field(
        "demo",
        description="where the list comes from: folder, csv, list, ucf101, hmdb51, kinetics, demo, or a plugin's",
    )
    root: str | None = Field(None, description="the folder or list file of the source; null for the demo's own folder")
    split: int = Field(1, ge=1, le=3, description="official split of UCF101 and HMDB51")
    test_fraction: float = Field(
        0.25, gt=0, lt=1, description="share of a folder without its own test part that is kept for testing"
    )
    group: str | None = Field(
        None, description="regular expression on the file name; no group is on both sides of a split"
    )
    workers: int = Field(2, ge=0, description="loader processes of each rank; 0 loads in the training process")
    decoder: Literal["pyav", "torchcodec"] = Field(
        "pyav", description="what decodes; both return the frames of a sequential decode"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="the run stops when more of its videos than this cannot be read"
    )


class ClipSection(Section):
    frames: int = Field(8, ge=1, le=1024, description="frames of a clip")
    size: int = Field(48, ge=8, le=1024, description="side of the square clip, in pixels")
    stride: int = Field(1, ge=1, description="frames of the video from one sampled frame to the next")
    area: tuple[float, float] = Field((0.2, 1.0), description="share of the frame that the random crop shows")
    aspect: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of the random crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirror image")
    short: Literal["fit", "loop", "clamp"] = Field(
        "fit", description="videos too short for the stride: draw only what fits, start again, or repeat the last frame"
    )
    normalisation: Literal["imagenet", "minus1_1", "raw255"] = Field(
        "imagenet", description="what pixel values are scaled to before the net"
    )

    @field_validator("area", "aspect")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be (low, high) with 0 < low <= high")
        return value

    @field_validator("area")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("is a share of the frame, at most 1")
        return value


class Schedule(Section):
    """A weight that comes into force at `start_epoch` and grows evenly to `value` over `ramp_epochs`."""

    value: float = Field(1.0, ge=0, description="the weight once in force")
    start_epoch: int = Field(0, ge=0, description="the first epoch (from 0) in which it is in force")
    ramp_epochs: float = Field(0.0, ge=0, description="epochs from 0 to the value")

    def at(self, epoch: float) -> float:
        """The weight at a moment, in epochs since the start."""
        if epoch < self.start_epoch:
            return 0.0
        if self.ramp_epochs == 0:
            return self.value
        return self.value * min((epoch - self.start_epoch) / self.ramp_epochs, 1.0)


Weight = Annotated[float, Field(ge=0)] | Schedule


class ViewsSection(Section):
    join: bool = Field(True, description="let plugins share clips where their requests allow")
    groups: tuple[tuple[str, ...], ...] = Field((), description="names that must share one group of clips")
    own: tuple[str, ...] = Field((), description="names that share with nobody")

    @model_validator(mode="after")
    def _used(self) -> ViewsSection:
        for key in ("groups", "own"):
            if getattr(self, key) and not self.join:
                raise ValueError(f"{key} has no effect with join: false, where nobody shares; remove one of them")
        return self


class CombineSection(Section):
    name: str | None = Field(
        None, description="the plugin that turns named losses into gradients; null is the weighted sum"
    )


class OptimSection(Section):
    name: Literal["sgd", "adamw", "lars"] = Field("sgd", description="the optimizer")
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd and lars")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of adamw's moments")
    weight_decay: float = Field(
        1e-4, ge=0, description="weight decay; normalisation and biases are decayed too unless `decay_norms` is false"
    )
    decay_norms: bool = Field(True, description="decay the parameters of normalisation layers and biases")
    schedule: Literal["cosine", "constant", "steps"] = Field("cosine", description="the learning rate over the run")
    final_lr: float = Field(0.0, ge=0, description="where the cosine ends")
    milestones: tuple[float, ...] = Field(
        (), description="epochs at which `steps` multiplies the learning rate by gamma"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="the factor of `steps`")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from `warmup_lr`")
    warmup_lr: float = Field(0.0, ge=0, description="where the warm-up begins")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(
        1, ge=1, description="microbatches in a step; in-batch negatives and batch statistics see one microbatch"
    )

    @model_validator(mode="after")
    def _used(self) -> OptimSection:
        unused: tuple[str, ...] = {"adamw": ("momentum",), "sgd": ("betas",), "lars": ("betas",)}[self.name]
        more: dict[str, tuple[str, ...]] = {
            "cosine": ("milestones", "gamma"),
            "constant": ("milestones", "gamma", "final_lr"),
            "steps": ("final_lr",),
        }
        for key in (*unused, *more[self.schedule]):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with name: {self.name} and schedule: {self.schedule}; remove it")
        if self.warmup_lr and not self.warmup_epochs:
            raise ValueError("warmup_lr has no effect without warmup_epochs; set them, or remove it")
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("schedule: steps needs milestones, the epochs at which the rate falls; or take constant")
        return self


class DeviceSection(Section):
    kind: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the net runs; auto takes a GPU where there is one"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="autocast; float16 scales the loss"
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of the training process; part of what makes runs repeat bit for bit"
    )
    sync_batch_norm: bool = Field(False, description="batch statistics over all ranks")
    channels_last: bool = Field(False, description="memory layout channels_last_3d")
    compile: bool = Field(False, description="torch.compile the backbone")


class CheckpointSection(Section):
    every_steps: int = Field(50, ge=1, description="save the last checkpoint this often")
    every_minutes: float = Field(10.0, gt=0, description="... and this often")
    keep_every_epochs: int = Field(
        0, ge=0, description="keep checkpoints/epoch_NNNN.pt this often; 0 keeps only the last epoch's"
    )


class LogSection(Section):
    every_steps: int = Field(1, ge=1, description="write a line of metrics.jsonl this often")
    tensorboard: bool = Field(True, description="write TensorBoard events")


class LaunchSection(Section):
    nodes: int = Field(1, ge=1, description="machines that train together under `vssl train --launch`")
    gpus_per_node: int = Field(0, ge=0, description="GPUs on each node, with a process for each; 0 trains on CPUs")
    tasks_per_node: int | None = Field(
        None, ge=1, description="processes on each node; null is one for each GPU, or one where there are none"
    )
    cpus_per_task: int | None = Field(
        None, ge=1, description="cores of each process; null is device.threads and one for each loader process"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of each node; null is the cluster's default")
    timeout_minutes: float = Field(
        240.0, gt=0, description="time limit of each start; the job saves before it and goes back into the queue"
    )
    signal_seconds: int = Field(
        120, ge=1, description="how long before the limit it is told to save: longer than a step and a checkpoint take"
    )
    requeues: int = Field(100, ge=0, description="how often a job may go back into the queue")
    tries: int = Field(
        3, ge=1, description="starts without a new checkpoint, one after another, after which a job is given up"
    )
    rank_timeout_seconds: float = Field(
        600.0, gt=0, description="how long ranks wait for one that says nothing, also under torchrun"
    )
    partition: str | None = Field(None, description="Slurm partition; null is the cluster's default")
    account: str | None = Field(None, description="Slurm account that is charged")
    qos: str | None = Field(None, description="Slurm quality of service")
    constraint: str | None = Field(None, description="features that Slurm's nodes must have, as a100|h100")
    setup: tuple[str, ...] = Field((), description="shell lines before each start, as module load cuda")

    @model_validator(mode="after")
    def _one_process_for_each_gpu(self) -> LaunchSection:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node: {self.tasks_per_node} processes cannot share gpus_per_node: {self.gpus_per_node}; "
                "remove tasks_per_node, there is one process for each GPU"
            )
        return self

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks


def _names_or_mapping(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if len(set(map(str, value))) < len(value):
            raise ValueError("names a plugin twice")
        return {str(name): {} for name in value}
    if isinstance(value, dict):
        return {name: {} if options is None else options for name, options in value.items()}
    return value


Plugins = Annotated[
    dict[str, dict[str, Any]], BeforeValidator(_names_or_mapping)
]  # a list of names, or {name: options}


class RunConfig(Section):
    """The whole configuration of a run."""

    backbone: BackboneSection = BackboneSection()
    data: DataSection = DataSection()
    clip: ClipSection = ClipSection()
    appearance: AppearanceSettings = AppearanceSettings()
    plugins: Plugins = Field(default_factory=dict, description="the chosen plugins, in order, and their options")
    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="mixing weight of each objective: a number or {value, start_epoch, ramp_epochs}; 1 where absent",
    )
    combine: CombineSection = CombineSection()
    views: ViewsSection = ViewsSection()
    optim: OptimSection = OptimSection()
    epochs: int = Field(20, ge=1, description="passes over the list")
    batch_size: int = Field(24, ge=1, description="videos in one step, over all ranks and microbatches")
    seed: int = Field(0, ge=0, lt=2**31, description="what all random numbers are drawn from")
    init: str | None = Field(None, description="a run folder or weights file to start a new run from, by name")
    device: DeviceSection = DeviceSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    launch: LaunchSection = LaunchSection()

    def weight(self, name: str, epoch: float) -> float:
        """The mixing weight of an objective at a moment, in epochs since the start."""
        weight = self.weights.get(name, 1.0)
        return weight.at(epoch) if isinstance(weight, Schedule) else float(weight)

    def clip_request(self) -> Request:
        """The run's own clip as a request with a value in every field: what PLAIN means."""
        clip = self.clip
        return Request(
            clips=1,
            frames=clip.frames,
            size=clip.size,
            strides=Strides((clip.stride,), shared=False, short=clip.short),
            placement=Independent(),
            boxes=Boxes(Independent(), clip.area, clip.aspect),
            flips=Flips(clip.flip),
            turns=Turns((0,)),
            appearance=Appearance(self.appearance.colour, self.appearance.per),
        )


# Loading --------------------------------------------------------------------------------------------------------------


def load_config(
    path: str | None = None,
    *,
    plugins: Sequence[str] | None = None,
    data: tuple[str, str | None] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The configuration from a file, the command line's choice of plugins and data, and `key=value` overrides, in
    this order.

    `plugins` replaces the set of the file: options and weights of those chosen stay, others' are dropped. Raises
    `ConfigError`.
    """
    tree = read_yaml(path) if path else {}
    return settle(tree, path or "config", plugins=plugins, data=data, overrides=overrides)


def settle(
    tree: Mapping[str, Any],
    where: str,
    *,
    plugins: Sequence[str] | None = None,
    data: tuple[str, str | None] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """As `load_config`, from the keys and values of a file; `where` is what its errors begin with."""
    tree = dict(tree)
    if plugins is not None:
        tree |= {**_of_the_chosen(tree, plugins), "plugins": _choose(tree, plugins)}
    if data is not None:
        known = tree.get("data") or {}
        tree["data"] = {**known, "source": data[0], "root": data[1]} if isinstance(known, dict) else known
    for override in overrides:
        _override(tree, override)
    return build(RunConfig, tree, where)


def _choose(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if list(names).count(name) > 1:
            raise ConfigError(f"plugins: '{name}' is named twice; name it once")
    known = tree.get("plugins") or {}
    return {name: (known.get(name) or {}) if isinstance(known, dict) else {} for name in names}


def _of_the_chosen(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The file's weights and views without the plugins of the file that are not chosen."""
    known = tree.get("plugins")
    known = known if isinstance(known, list | dict) else ()
    dropped = {name for name in known if isinstance(name, str)} - set(names)
    weights, views = tree.get("weights"), tree.get("views")
    found: dict[str, Any] = {}
    if isinstance(weights, dict):
        found["weights"] = {name: weight for name, weight in weights.items() if name not in dropped}
    if isinstance(views, dict):
        found["views"] = {key: _without(value, dropped) for key, value in views.items()}
    return found


def _without(value: Any, dropped: set[str]) -> Any:
    """A list of names, or of lists of names, without the dropped ones and without what is empty then."""
    if not isinstance(value, list | tuple):
        return value
    kept = [_without(part, dropped) for part in value if not (isinstance(part, str) and part in dropped)]
    return [part for part in kept if part != []]


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"'{override}': an override is key=value, for example optim.lr=0.1")
    value = from_yaml(text, f"'{override}'")
    chosen = tree.get("plugins") or {}
    if parts[0] == "plugins" and len(parts) > 1 and isinstance(chosen, list | dict) and parts[1] not in chosen:
        raise ConfigError(
            f"'{override}': plugin '{parts[1]}' is not chosen{did_you_mean(parts[1], chosen)}; "
            "choose it too, or leave this out"
        )
    if parts[0] == "plugins" and isinstance(chosen, list):
        tree["plugins"] = {name: {} for name in chosen}
    for part in parts[:-1]:
        inner = tree.get(part)
        if inner is not None and not isinstance(inner, dict):
            inner = {"value": inner} if parts[0] == "weights" else _refuse_path(override, part)
        tree[part] = dict(inner or {})
        tree = tree[part]
    tree[parts[-1]] = value


def _refuse_path(override: str, part: str) -> dict[str, Any]:
    raise ConfigError(f"'{override}': '{part}' holds a value, not further keys; leave them out")


def build_options(model: type[Model], options: Mapping[str, Any], plugin: str) -> Model:
    """The checked options of a plugin; errors name the whole key."""
    return build(model, options, f"plugins.{plugin}", ".")


def check_weights(config: RunConfig, objectives: Sequence[str]) -> None:
    """A weight for something that is not trained, or only after the run, is an error."""
    for name, weight in config.weights.items():
        if isinstance(weight, Schedule) and weight.start_epoch >= config.epochs:
            raise ConfigError(
                f"weights.{name}.start_epoch: epoch {weight.start_epoch} never comes in {config.epochs} epochs, "
                f"counted from 0; lower it, or give {name} the weight 0"
            )
        if name not in objectives:
            raise ConfigError(
                f"weights.{name}: no objective of this name is chosen{did_you_mean(name, objectives)}; remove "
                "the weight or choose the plugin"
            )


# Writing and comparing ------------------------------------------------------------------------------------------------


def default_yaml() -> str:
    """All defaults as a config file: what `configs/default.yaml` holds."""
    return HEADER + to_yaml(to_tree(RunConfig()))


HEADER = """\
# Every key and its default; docs/configuration.md explains each. Generated from the code:
# python -c "from vssl_core.config import default_yaml as text; print(text(), end='')" > configs/default.yaml
# `plugins` is empty because you choose them: here, as {name: options}, or with --plugins on the command line.
"""


# Only these may differ when a run is started again in its folder: none of them can change weights.
FREE_KEYS = ("checkpoint", "log", "launch", "data.workers", "data.root", "data.decoder", "data.max_bad_fraction")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys that two configurations of one run may not differ in, each as 'key: before -> after'."""
    old, new = flatten(before), flatten(after)
    lines = []
    for key in sorted({**old, **new}):
        free = any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
        if not free and old.get(key, "absent") != new.get(key, "absent"):
            lines.append(f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
    if list(before.get("plugins", {})) != list(after.get("plugins", {})) and not lines:
        lines.append(f"plugins: {list(before['plugins'])} -> {list(after['plugins'])}")
    return lines
