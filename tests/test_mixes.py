"""Which plugins share clips: the tables of docs/architecture.md row by row, and what no neighbour may do to anybody."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core.config import RunConfig
from vssl_core.errors import ConfigError
from vssl_core.joining import SHARED_FIELDS, Group, Plan, plan, resolve
from vssl_core.looks import draw
from vssl_core.plugins import installed, load
from vssl_core.requests import (
    ANY,
    PLAIN,
    Appearance,
    Between,
    Boxes,
    Fixed,
    Halves,
    Independent,
    Request,
    Strides,
    Turns,
)
from vssl_core.run.build import build_parts, choose, context_of, make_backbone, recipe_of
from vssl_core.windows import Sample, draw_windows

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
CONFIG = RunConfig()
RUN = CONFIG.clip_request()


@cache
def asked(name: str, **options: Any) -> dict[str, Request]:
    """The requests of an installed plugin with these options."""
    chosen = choose(RunConfig(plugins={name: options}))
    context = context_of(chosen.config, name, make_backbone(chosen.config, chosen.manager), videos=1000)
    objective = chosen.plugins[name].objective
    assert objective is not None
    return dict(objective(chosen.options[name], context).requests())


def objectives() -> list[str]:
    """The installed plugins of this distribution that train something."""
    offers = [name for name, offers in installed().items() if offers[0].distribution == "vssl"]
    return [name for name, plugin in load(offers)[1].items() if plugin.objective is not None]


def joined(names: Sequence[str], run: Request = RUN) -> Plan:
    """The plan of these plugins with their defaults, in this order."""
    return plan({name: asked(name) for name in names}, run)


# The tables -----------------------------------------------------------------------------------------------------------


def table(marker: str) -> list[list[str]]:
    """The rows of the table behind `<!-- marker -->`, the header first, as plain text."""
    text = PAGE.read_text(encoding="utf-8").partition(f"<!-- {marker} -->")[2].lstrip("\n")
    lines = text.partition("\n\n")[0].splitlines()
    assert len(lines) > 2 and set(lines[1]) <= set("|-: "), f"docs/architecture.md has no table behind '{marker}'"
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def pairs() -> list[tuple[str, str, str]]:
    """(row, column, cell) of the table of pairs, both names and what stands between them."""
    head, *rows = table("mixes: pairs")
    return [(row[0], name, cell) for row in rows for name, cell in zip(head[1:], row[1:], strict=True) if cell]


def mixes() -> list[tuple[str, ...]]:
    """(mix, groups, apart) of the table of larger mixes."""
    return [tuple(row) for row in table("mixes: more than two")[1:]]


@pytest.mark.parametrize(("left", "right", "cell"), [pytest.param(*row, id="+".join(row[:2])) for row in pairs()])
def test_pairs_of_the_page_are_true_in_both_orders(left: str, right: str, cell: str) -> None:
    for names in ((left, right), (right, left)):
        made = joined(names)
        found = "yes" if len(made.groups) == 1 else made.refusals[0].field
        assert found == cell, f"{' + '.join(names)}: the plan says {found}, docs/architecture.md {cell}"


def alike() -> list[str]:
    """The plugins that the page says ask for the same as the last one named."""
    line = PAGE.read_text(encoding="utf-8").partition("<!-- mixes: alike -->\n")[2].partition("\n")[0]
    return re.findall(r"`([\w-]+)`", line)


def test_those_who_ask_alike_ask_alike() -> None:
    *names, pattern = alike()
    (wanted,) = asked(pattern).values()
    for name in set(names) & set(objectives()):
        assert list(asked(name).values()) == [wanted], f"{name} does not ask for what {pattern} asks"


def test_the_page_names_every_pair() -> None:
    names = [name for name in objectives() if name not in alike()[:-1]]
    told = {frozenset(row[:2]) for row in pairs()}
    assert {frozenset((left, right)) for left in names for right in names if left != right} == told


@pytest.mark.parametrize(("mix", "groups", "apart"), [pytest.param(*row, id=row[0]) for row in mixes()])
def test_mixes_of_the_page_are_true(mix: str, groups: str, apart: str) -> None:
    made = plan(dict(read_mix(mix)), RUN)
    assert "; ".join(map(written, made.groups)) == groups
    assert "; ".join(f"{refusal.slot.split('/')[0]} from {refusal.group.split('/')[0]}: {refusal.field}"
                     for refusal in made.refusals) == apart  # fmt: skip


def read_mix(mix: str) -> list[tuple[str, Mapping[str, Request]]]:
    """(name, requests) of 'stor, pace (contrast: same_pace)'."""
    found = []
    for part in re.split(r",\s*(?![^(]*\))", mix):
        match = re.fullmatch(r"([\w-]+)(?: \((.*)\))?", part)
        assert match, f"docs/architecture.md: '{part}' is neither a plugin nor a plugin (option: value)"
        options = dict(option.split(": ") for option in match[2].split(", ")) if match[2] else {}
        found.append((match[1], asked(match[1], **options)))
    return found


def written(group: Group) -> str:
    """A group as the page writes it: '2 clips for stor, pace'; who reads fewer says how many."""
    count = group.request.least
    readers = [
        slot.split("/")[0] + (f" ({read})" if read < count else "") for slot, read in group.members.items()
    ]  # fmt: skip
    return f"{count} clip{'s' * (count > 1)} for {', '.join(readers)}"


def test_the_four_of_cstp_share_one_pair_in_a_real_run() -> None:
    names = ("stor", "pace", "rotation", "byol")
    for order in permutations(names):
        parts = build_parts(choose(RunConfig(plugins={name: {} for name in order})), videos=1000)
        (group,) = parts.plan.groups
        assert {slot.split("/")[0]: count for slot, count in group.members.items()} == dict.fromkeys(names, 2)
        assert not parts.plan.refusals


# What silence protects ------------------------------------------------------------------------------------------------


def untouched(name: str, request: Request, group: Group, run: Request = RUN) -> None:
    """Every value that a request holds, or leaves to the run, is the group's; only ANY yields."""
    for field in SHARED_FIELDS:
        wanted = getattr(run if getattr(request, field) is PLAIN else request, field)
        if isinstance(wanted, Strides) and isinstance(wanted.choices, tuple) and len(wanted.choices) == 1:
            wanted = replace(wanted, shared=ANY)  # one choice is one stride for all clips, drawn together or not
        _same(f"{name}.{field}", wanted, getattr(group.request, field))
    assert group.request.least >= request.least and group.request.tail >= request.tail
    assert set(request.measures) <= set(group.request.measures)


def _same(where: str, wanted: Any, given: Any) -> None:
    if wanted is ANY:
        return
    if is_dataclass(wanted) and type(wanted) is type(given):
        for part in fields(wanted):
            _same(f"{where}.{part.name}", getattr(wanted, part.name), getattr(given, part.name))
    else:
        assert wanted == given, f"{where}: asked for {wanted}, gets {given}"


NAMES = st.lists(st.sampled_from(objectives()), unique=True, min_size=1)


@given(NAMES)
def test_no_mix_touches_what_a_plugin_did_not_yield(names: list[str]) -> None:
    made = joined(names)
    for name in names:
        for slot, request in asked(name).items():
            group, count = made.find(f"{name}/{slot}")
            assert request.least <= count <= request.most
            untouched(name, request, made.groups[group])


@given(NAMES, st.integers(0, 2**31 - 1), st.integers(40, 300))
@settings(max_examples=60)
def test_no_turn_pace_or_flicker_reaches_a_plugin_that_did_not_say_any(names: list[str], seed: int, total: int) -> None:
    """The same promise, seen in what is really drawn: windows and colours, not declarations."""
    made = joined(names)
    for name in names:
        for slot, request in asked(name).items():
            number, count = made.find(f"{name}/{slot}")
            group = made.groups[number]
            windows = draw_windows(group.request, Sample(seed, 0, 0, 7), group.stream, total, (120, 160))[:count]
            if request.turns is PLAIN:
                assert all(window.turns == 0 for window in windows), f"{name} got a neighbour's rotation in {names}"
            if request.strides is PLAIN:
                assert all(window.stride == CONFIG.clip.stride for window in windows), f"{name} got a pace in {names}"
            appearance = resolve(request, RUN).appearance
            if appearance is not ANY and appearance.per == "clip":
                colour = draw(recipe_of(CONFIG, group), np.random.default_rng(seed), group.request.frames)["colour"]
                assert (colour == colour[:1]).all(), f"{name} got a neighbour's per-frame jitter in {names}"


def test_the_promise_can_fail() -> None:
    """The checks above see a rotated, hurried or flickering clip where there is one."""
    made = joined(["rotation", "pace"])
    (group,) = made.groups
    silent = Request(clips=1)
    with pytest.raises(AssertionError, match=r"silent\.(strides|turns|appearance)"):
        untouched("silent", silent, group)
    samples = [Sample(seed, 0, 0, 7) for seed in range(40)]
    windows = [draw_windows(group.request, sample, group.stream, 200, (120, 160))[0] for sample in samples]
    assert {window.turns for window in windows} == {0, 1, 2, 3}
    assert len({window.stride for window in windows}) > 1
    colour = draw(replace(recipe_of(CONFIG, group), gate_probability=1.0), np.random.default_rng(0), 8)["colour"]
    assert (colour != colour[:1]).any()


# A request with anything in any field, as a stranger may write it.
FIELDS = {
    "strides": [PLAIN, ANY, Strides((1, 2, 4)), Strides((1,)), Strides(shared=True), Strides(Between(1, 3))],
    "placement": [PLAIN, ANY, Independent(), Halves(), Halves("sparse"), Halves("dense")],
    "boxes": [PLAIN, ANY, Boxes(Independent()), Boxes(area=(0.5, 1.0))],
    "flips": [PLAIN, ANY],
    "turns": [PLAIN, ANY, Turns((0, 2))],
    "appearance": [PLAIN, ANY, Appearance("kept"), Appearance("jittered"), Appearance(per="frame")],
    "clips": [1, 2, (1, 2)],
}  # fmt: skip
STRANGERS = st.builds(Request, **{name: st.sampled_from(choices) for name, choices in FIELDS.items()})


@given(STRANGERS, NAMES, st.integers(0, 10))
def test_a_stranger_gets_what_it_asked_for_beside_any_plugins(stranger: Request, names: list[str], place: int) -> None:
    requests = [(name, asked(name)) for name in names]
    requests.insert(min(place, len(names)), ("stranger", {"clip": stranger}))
    made = plan(dict(requests), RUN)
    for name, slots in requests:
        for slot, request in slots.items():
            untouched(name, request, made.groups[made.find(f"{name}/{slot}")[0]])


# Pinning and keeping apart --------------------------------------------------------------------------------------------


def test_pins_keep_groups_apart_and_are_refused_where_they_cannot_be() -> None:
    requests = {name: asked(name) for name in ("stor", "pace", "byol", "simclr")}
    made = plan(requests, RUN, groups=[["stor", "pace"], ["byol", "simclr"]])
    assert [written(group) for group in made.groups] == ["2 clips for stor, pace", "2 clips for byol, simclr"]
    made = plan(requests, RUN, own=["pace"])
    assert [written(group) for group in made.groups] == ["2 clips for stor, byol, simclr", "1 clip for pace"]
    with pytest.raises(ConfigError, match=r"'rotation' and 'statistics' cannot share clips.*turns"):
        both = {name: asked(name) for name in ("statistics", "rotation")}
        plan(both, RUN, groups=[["statistics", "rotation"]])


@given(st.integers(0, 2**31 - 1), st.integers(1, 300))
def test_a_fixed_clip_is_the_same_in_every_epoch_mix_and_extraction(seed: int, total: int) -> None:
    """So that a curriculum trains on the clip that it has scored."""
    group = plan({"curriculum": {"clip": Request(placement=Fixed())}}, RUN).groups[0]
    places = [(group.stream, 0), (group.stream, 5), ("neighbour/clip", 1), ("extract/clips", 0)]
    drawn = [draw_windows(group.request, Sample(seed, epoch, 0, 7), name, total, (90, 90))[0] for name, epoch in places]
    assert len({(window.start, window.stride) for window in drawn}) == 1


def test_a_plugin_added_at_the_end_pairs_nobody_anew() -> None:
    """And changes no draw: a group's stream is the name of its first member."""
    for names in permutations(("stor", "simclr", "statistics", "rotation"), 3):
        before = joined(names)
        for added in set(objectives()) - set(names):
            after = joined([*names, added])
            for group, grown in zip(before.groups, after.groups, strict=False):
                assert list(group.members) == [slot for slot in grown.members if not slot.startswith(f"{added}/")]
                assert group.stream == grown.stream
