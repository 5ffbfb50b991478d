"""What an objective asks of the clips it reads, and which requests can share one group of clips.

Silence protects: a field that says nothing is `PLAIN`, the run's own setting, and no neighbour may change it. Only
`ANY` yields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any, Literal

from vssl_core.errors import ConfigError, PluginError, did_you_mean


class Mark(Enum):
    """The two things a field may say instead of a value."""

    PLAIN = "plain"
    ANY = "any"

    def __repr__(self) -> str:
        return self.name


PLAIN: Any = Mark.PLAIN  # the run's clip settings, and no neighbour may change them
ANY: Any = Mark.ANY  # whatever a neighbour needs, else the run's settings


# Where clips lie, in time (placement) and in space (the layout of boxes) ----------------------------------------------


@dataclass(frozen=True)
class Independent:
    """Each clip is drawn by itself."""


@dataclass(frozen=True)
class Overlapping:
    """Two clips that share one of `rates` of their span (in time) or of their area (in space)."""

    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Halves:
    """Clip 0 and clip 1 are the halves of one span; with `overview`, clip 2 is the whole span at twice the stride."""

    overview: bool = False


@dataclass(frozen=True)
class Fixed:
    """Drawn once for each video, alike in every epoch."""


@dataclass(frozen=True)
class Centre:
    """The middle of the video, or the central square of 7/8 of the short side."""


@dataclass(frozen=True)
class Uniform:
    """`clips` clips, evenly spread over the video."""

    clips: int = 10


@dataclass(frozen=True)
class Same:
    """One box for all clips."""


Placement = Independent | Overlapping | Halves | Fixed | Centre | Uniform
Layout = Independent | Overlapping | Same | Centre


def clips_of(layout: Placement | Layout | Mark) -> int | None:
    """How many clips a layout is made for; None where it serves any number."""
    match layout:
        case Overlapping():
            return 2
        case Halves(overview):
            return 3 if overview else 2
        case Uniform(clips):
            return clips
        case _:
            return None


# The records of a request ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Between:
    """Any stride from `low` to `high`, evenly."""

    low: float
    high: float


@dataclass(frozen=True)
class Strides:
    """Frames from one sampled frame to the next: integers play fast, fractions 1/q repeat each frame q times."""

    choices: tuple[int | Fraction, ...] | Between | Any = ANY
    shared: bool | Any = ANY  # one draw for all clips of a sample
    short: Literal["fit", "loop", "clamp"] | Any = ANY  # what happens where the video is too short for the stride


@dataclass(frozen=True)
class Boxes:
    """The part of the frame that a clip shows."""

    layout: Layout | Any = ANY
    area: tuple[float, float] | Any = ANY  # share of the frame
    aspect: tuple[float, float] | Any = ANY  # width over height


@dataclass(frozen=True)
class Flips:
    """Mirror images: left becomes right with this probability, drawn for each clip."""

    probability: float | Any = ANY


@dataclass(frozen=True)
class Turns:
    """Quarter turns, counter-clockwise, drawn evenly for each clip; applied last."""

    choices: tuple[int, ...] | Any = ANY


@dataclass(frozen=True)
class Appearance:
    """Colour, blur and noise: `jittered` as the run describes, or `kept` as filmed.

    One draw for each clip or each frame.
    """

    colour: Literal["jittered", "kept"] | Any = ANY
    per: Literal["clip", "frame"] | Any = ANY


@dataclass(frozen=True)
class Measure:
    """A pure function of one clip, run in the loader worker: `function(crop, clip, window)` gives an array of fixed
    shape.

    `clip` is the (T,S,S,3) uint8 result; `crop` the same box at source resolution, flipped and turned alike; tail
    frames included.
    """

    name: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Request:
    """What one slot of an objective needs from the clips it reads.

    `Request()` is exactly the clip the run describes.
    """

    clips: int | tuple[int, int] = 1  # exactly n, or (least, most): I read at most `most`
    frames: int | Any = PLAIN
    size: int | Any = PLAIN
    tail: int = 0  # further frames after the clip, same window and appearance
    strides: Strides | Any = PLAIN
    placement: Placement | Any = PLAIN
    boxes: Boxes | Any = PLAIN
    flips: Flips | Any = PLAIN
    turns: Turns | Any = PLAIN
    appearance: Appearance | Any = PLAIN
    measures: tuple[Measure, ...] = ()

    @property
    def least(self) -> int:
        return self.clips if isinstance(self.clips, int) else self.clips[0]

    @property
    def most(self) -> int:
        return self.clips if isinstance(self.clips, int) else self.clips[1]

    def check(self, where: str) -> None:
        """Raise a `PluginError` for a request that no data could satisfy."""
        if not 1 <= self.least <= self.most:
            raise PluginError(
                f"{where}: a request reads at least one clip and (least, most) in this order, got clips={self.clips}"
            )
        if self.tail < 0:
            raise PluginError(f"{where}: a tail cannot be negative, got tail={self.tail}")
        for made_for in _layout_sizes(self):
            if made_for < self.least:
                raise PluginError(f"{where}: asks for {self.least} clips in a layout that is made for {made_for}")


def _layout_sizes(request: Request) -> list[int]:
    boxes = request.boxes.layout if isinstance(request.boxes, Boxes) else ANY
    sizes = [clips_of(request.placement), clips_of(boxes)]
    return [size for size in sizes if size is not None]


# Joining --------------------------------------------------------------------------------------------------------------

SHARED_FIELDS = ("frames", "size", "strides", "placement", "boxes", "flips", "turns", "appearance")


class Contradiction(Exception):
    """Two requests cannot share clips: they want different things of one field."""

    def __init__(self, name: str, left: object, right: object) -> None:
        super().__init__(name, left, right)
        self.name, self.left, self.right = name, left, right


def resolve(request: Request, settings: Request) -> Request:
    """The request with every PLAIN replaced by the run's value; `settings` has a value in every field."""
    plain = {name: getattr(settings, name) for name in SHARED_FIELDS if getattr(request, name) is PLAIN}
    return _with_one_stride(replace(request, **plain))


def _with_one_stride(request: Request) -> Request:
    """Clips that are placed by each other's span have one stride; a neighbour who needs several stands apart."""
    strides = Strides() if request.strides is ANY else request.strides
    if isinstance(request.placement, Overlapping | Halves) and strides.shared is ANY:
        return replace(request, strides=replace(strides, shared=True))
    return request


def complete(request: Request, settings: Request) -> Request:
    """The request with every ANY that no neighbour settled replaced by the run's value."""
    return replace(
        request, **{name: _complete(getattr(request, name), getattr(settings, name)) for name in SHARED_FIELDS}
    )


def _complete(value: Any, default: Any) -> Any:
    if value is ANY:
        return default
    if _is_record(value) and type(value) is type(default):
        return replace(
            value,
            **{part.name: _complete(getattr(value, part.name), getattr(default, part.name)) for part in fields(value)},
        )
    return value


def join(left: Request, right: Request) -> Request:
    """One request that serves both, as far as clips are concerned; `Contradiction` names the field where it cannot be.

    Both must be resolved: no PLAIN is left in them.
    """
    merged = {name: _join(name, getattr(left, name), getattr(right, name)) for name in SHARED_FIELDS}
    count = max(left.least, right.least)
    both = replace(
        left, clips=count, tail=max(left.tail, right.tail), measures=_union(left.measures, right.measures), **merged
    )
    for made_for in _layout_sizes(both):
        if made_for < count:
            raise Contradiction("clips", left.clips, right.clips)
    return both


def _join(name: str, left: Any, right: Any) -> Any:
    if left is ANY or right is ANY:
        return right if left is ANY else left
    if left == right:
        return left
    if _is_record(left) and type(left) is type(right):
        return replace(
            left,
            **{
                part.name: _join(f"{name}.{part.name}", getattr(left, part.name), getattr(right, part.name))
                for part in fields(left)
            },
        )
    raise Contradiction(name, left, right)


def _is_record(value: object) -> bool:
    return is_dataclass(value) and isinstance(value, Strides | Boxes | Flips | Turns | Appearance)


def _union(left: tuple[Measure, ...], right: tuple[Measure, ...]) -> tuple[Measure, ...]:
    known = {measure.name: measure for measure in left}
    for measure in right:
        if known.setdefault(measure.name, measure) != measure:
            raise PluginError(
                f"measure '{measure.name}': two plugins give this name to different functions; one of them must "
                "rename it"
            )
    return tuple(known.values())


# The plan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Clips that several slots read: one decode, one cut, one forward for each clip."""

    request: Request  # complete: a value in every field
    members: dict[str, int]  # 'objective/slot' -> how many of the clips it reads

    @property
    def stream(self) -> str:
        """The name its random draws go by: its first member's, so that a plugin added at the end changes no draw."""
        return next(iter(self.members))


@dataclass(frozen=True)
class Refusal:
    """Why a slot did not join a group that was there before it."""

    slot: str
    group: str
    field: str
    wants: str
    given: str


@dataclass(frozen=True)
class Plan:
    """Which slots read which group of clips, and why those that stand apart do."""

    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...] = ()

    def find(self, slot: str) -> tuple[int, int]:
        """The number of the slot's group, and how many of its clips the slot reads."""
        for number, group in enumerate(self.groups):
            if slot in group.members:
                return number, group.members[slot]
        raise KeyError(slot)

    def describe(self) -> dict[str, Any]:
        """The plan as plain JSON values: what `plan.json` holds."""
        return {
            "groups": [{"members": dict(group.members), "request": describe(group.request)} for group in self.groups],
            "apart": [vars(refusal) for refusal in self.refusals],
        }


def describe(value: Any) -> Any:
    """A request, or any part of one, as plain JSON values."""
    if isinstance(value, Mark):
        return value.name
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Measure):
        return value.name
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        inner = {part.name: describe(getattr(value, part.name)) for part in fields(value)}
        return inner if _is_record(value) or isinstance(value, Request) else {type(value).__name__: inner}
    return value


@dataclass
class _Draft:
    """A group while it is being joined."""

    request: Request
    slots: dict[str, Request] = field(default_factory=dict)
    pinned: frozenset[str] | None = None  # the names that a pinned group is kept for
    closed: bool = False


def plan(
    requests: Mapping[str, Mapping[str, Request]],
    settings: Request,
    *,
    joined: bool = True,
    groups: Sequence[Sequence[str]] = (),
    own: Sequence[str] = (),
) -> Plan:
    """Join the requests of all objectives, in the order of the config.

    `requests` is {objective: {slot: Request}}; `settings` the run's own clip; `groups` pins names together (an
    objective, or
    'objective/slot'), `own` keeps names apart, `joined=False` keeps all apart.

    Raises:
        ConfigError: a pinned group that cannot be, or a name that is not there.
        PluginError: a request that no data could satisfy.
    """
    pins = _pins(requests, groups, own)
    drafts: list[_Draft] = []
    refusals: list[Refusal] = []
    for objective, slots in requests.items():
        for slot, request in slots.items():
            name = f"{objective}/{slot}"
            request.check(f"plugins.{objective}: request '{slot}'")
            _place(
                name,
                objective,
                resolve(request, settings),
                drafts,
                refusals,
                pins,
                apart=not joined or bool({name, objective} & set(own)),
            )
    return Plan(tuple(_finish(draft, settings) for draft in drafts), tuple(refusals))


def _pins(
    requests: Mapping[str, Mapping[str, Request]], groups: Sequence[Sequence[str]], own: Sequence[str]
) -> dict[str, frozenset[str]]:
    known = {
        name
        for objective, slots in requests.items()
        for name in (objective, *(f"{objective}/{slot}" for slot in slots))
    }
    pins: dict[str, frozenset[str]] = {}
    for name in [*(name for group in groups for name in group), *own]:
        if name not in known:
            raise ConfigError(
                f"views: '{name}' is neither a chosen plugin nor one of its slots{did_you_mean(name, known)}"
            )
        if name in pins or (name in own and any(name in group for group in groups)):
            raise ConfigError(f"views: '{name}' stands in more than one place; name it once")
        pins[name] = next((frozenset(group) for group in groups if name in group), frozenset())
    return {name: group for name, group in pins.items() if group}


def _place(
    name: str,
    objective: str,
    request: Request,
    drafts: list[_Draft],
    refusals: list[Refusal],
    pins: Mapping[str, frozenset[str]],
    apart: bool,
) -> None:
    pin = pins.get(name, pins.get(objective))
    for draft in drafts:
        if (
            apart
            or draft.closed
            or draft.pinned != pin
            or any(slot.rsplit("/", 1)[0] == objective for slot in draft.slots)
        ):
            continue
        try:
            draft.request = join(draft.request, request)
        except Contradiction as contradiction:
            refusal = Refusal(
                name,
                next(iter(draft.slots)),
                contradiction.name,
                str(describe(contradiction.right)),
                str(describe(contradiction.left)),
            )
            if pin is not None:
                raise ConfigError(
                    f"views.groups: {_together(pin)} cannot share clips: {refusal.group} has {refusal.field} = "
                    f"{refusal.given}, "
                    f"{refusal.slot} wants {refusal.wants}; take one of them out of the group"
                ) from None
            refusals.append(refusal)
            continue
        draft.slots[name] = request
        return
    drafts.append(_Draft(replace(request, clips=request.least), {name: request}, pin, closed=apart))


def _together(pin: frozenset[str]) -> str:
    return " and ".join(f"'{name}'" for name in sorted(pin))


def _finish(draft: _Draft, settings: Request) -> Group:
    request = complete(draft.request, settings)
    count = request.least
    return Group(request, {slot: min(asked.most, count) for slot, asked in draft.slots.items()})
