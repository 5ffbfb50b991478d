"""Joining: which requests can share one group of clips, and the plan of a whole run.

First every PLAIN becomes the run's value; from then on there are only values and `ANY`, and two requests join when
every field does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

from vssl_core.errors import ConfigError, PluginError, did_you_mean
from vssl_core.requests import (
    ANY,
    PLAIN,
    Appearance,
    Boxes,
    Flips,
    Halves,
    Mark,
    Measure,
    Overlapping,
    Request,
    Strides,
    Turns,
    layout_sizes,
)

SHARED_FIELDS = ("frames", "size", "strides", "placement", "boxes", "flips", "turns", "appearance")


class Contradiction(Exception):
    """Two requests cannot share clips: they want different things of one field."""

    def __init__(self, name: str, left: object, right: object) -> None:
        super().__init__(name, left, right)
        self.name, self.left, self.right = name, left, right


def resolve(request: Request, settings: Request) -> Request:
    """The request with every PLAIN replaced by the run's value; `settings` has a value in every field."""
    plain = {name: getattr(settings, name) for name in SHARED_FIELDS if getattr(request, name) is PLAIN}
    return _with_shared_strides(replace(request, **plain))


def _with_shared_strides(request: Request) -> Request:
    """Whether the clips share one draw, where it matters or does not.

    One choice is the same for all clips, however it is drawn. Clips that are placed by each other's span have one
    stride; a neighbour who needs several stands apart.
    """
    strides = request.strides
    if strides is not ANY and isinstance(strides.choices, tuple) and len(strides.choices) == 1:
        strides = replace(strides, shared=ANY)
    if isinstance(request.placement, Overlapping | Halves):
        strides = Strides() if strides is ANY else strides
        strides = replace(strides, shared=True) if strides.shared is ANY else strides
    return replace(request, strides=strides)


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
    for made_for in layout_sizes(both):
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
            advice = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
            raise ConfigError(f"views: '{name}' is neither a chosen plugin nor one of its slots{advice}")
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
