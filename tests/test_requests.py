"""Which requests share clips: the rules of joining, and the mixes they must give."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core.config import RunConfig
from vssl_core.errors import ConfigError, PluginError
from vssl_core.joining import SHARED_FIELDS, Contradiction, Plan, complete, join, plan, resolve
from vssl_core.requests import (
    ANY,
    PLAIN,
    Appearance,
    Between,
    Boxes,
    Centre,
    Flips,
    Halves,
    Independent,
    Measure,
    Overlapping,
    Request,
    Same,
    Strides,
    Turns,
    Uniform,
)

RUN = RunConfig().clip_request()
JITTERED = Appearance("jittered")
FREE = {"strides": ANY, "placement": ANY, "boxes": ANY, "flips": ANY, "turns": ANY}


def edges(crop: object, clip: object, window: object) -> object:
    """A measure of the tests."""
    return clip


# What the methods we know must say; `contrast` stands for any contrast of two views.
KNOWN: dict[str, dict[str, Request]] = {
    "overlap": {
        "pair": Request(
            clips=2,
            strides=Strides(shared=True, short="fit"),
            placement=Overlapping(),
            boxes=Boxes(Overlapping()),
            flips=ANY,
            turns=ANY,
            appearance=ANY,
        )
    },
    "pace": {
        "clip": Request(
            clips=(1, 2),
            **{**FREE, "strides": Strides((1, 2, 3, 4), short="fit")},
            appearance=Appearance("jittered", "frame"),
        )
    },
    "same_context": {
        "clip": Request(
            clips=2,
            **{**FREE, "strides": Strides((1, 2, 3, 4), shared=False, short="fit")},
            appearance=Appearance("jittered", "frame"),
        )
    },
    "same_pace": {
        "clip": Request(
            clips=1,
            **{**FREE, "strides": Strides((1, 2, 3, 4), short="fit")},
            appearance=Appearance("jittered", "frame"),
        )
    },
    "rotation": {"clip": Request(clips=(1, 2), **{**FREE, "turns": Turns((0, 1, 2, 3))}, appearance=ANY)},
    "contrast": {"views": Request(clips=2, **FREE, appearance=JITTERED)},
    "statistics": {
        "clip": Request(
            clips=1,
            boxes=ANY,
            flips=ANY,
            appearance=Appearance("kept", "clip"),
            measures=(Measure("edges", edges),),
        )
    },
    "concepts": {
        "clip": Request(
            clips=2,
            tail=1,
            placement=ANY,
            boxes=ANY,
            flips=ANY,
            appearance=Appearance("jittered", "clip"),
        )
    },
    "multilevel": {
        "clips": Request(
            clips=3,
            strides=Strides(shared=True),
            placement=Halves("sparse"),
            boxes=Boxes(Same()),
            flips=ANY,
            appearance=Appearance("jittered", "frame"),
        )
    },
    "saccades": {"clips": Request(clips=10, placement=ANY, boxes=Boxes(Independent()), flips=ANY, appearance=JITTERED)},
    "silent": {"clip": Request()},
    "crops": {
        "large": Request(clips=2, **FREE, appearance=JITTERED),
        "small": Request(clips=4, size=32, **FREE, appearance=JITTERED),
    },
}


def mix(*names: str, run: Request = RUN, **views: object) -> Plan:
    """The plan of some known methods, in this order."""
    return plan({name: KNOWN[name] for name in names}, run, **views)


def members(of: Plan) -> list[set[str]]:
    """Who shares with whom."""
    return [{slot.split("/")[0] for slot in group.members} for group in of.groups]


# The table of mixes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, groups",
    [
        (("overlap", "pace", "rotation", "contrast"), [{"overlap", "pace", "rotation", "contrast"}]),
        (("contrast", "rotation", "pace", "overlap"), [{"overlap", "pace", "rotation", "contrast"}]),
        (("statistics", "rotation"), [{"statistics"}, {"rotation"}]),
        (("statistics", "contrast"), [{"statistics"}, {"contrast"}]),
        (("concepts", "pace"), [{"concepts"}, {"pace"}]),
        (("concepts", "rotation", "contrast"), [{"concepts", "contrast"}, {"rotation"}]),
        (("overlap", "same_context"), [{"overlap"}, {"same_context"}]),
        (("overlap", "same_pace"), [{"overlap", "same_pace"}]),
        (("multilevel", "pace"), [{"multilevel", "pace"}]),
        (("multilevel", "same_context"), [{"multilevel"}, {"same_context"}]),
        (("multilevel", "overlap"), [{"multilevel"}, {"overlap"}]),
        (("saccades", "rotation"), [{"saccades"}, {"rotation"}]),
        (("saccades", "contrast"), [{"saccades", "contrast"}]),
        (("silent", "rotation", "pace"), [{"silent"}, {"rotation", "pace"}]),
        (("silent", "overlap"), [{"silent"}, {"overlap"}]),
        (("crops", "rotation"), [{"crops", "rotation"}, {"crops"}]),
    ],
)
def test_who_shares_with_whom(names: tuple[str, ...], groups: list[set[str]]) -> None:
    assert members(mix(*names)) == groups


@given(order=st.permutations(sorted(KNOWN)), count=st.integers(1, len(KNOWN)))
@settings(max_examples=200, deadline=None)
def test_no_neighbour_reaches_a_field_that_was_not_given_away(order: list[str], count: int) -> None:
    """In any mix, in any order: what a slot said, or left at the run's, is what its group has."""
    drawn = mix(*order[:count])
    for group in drawn.groups:
        assert not any(part in (ANY, PLAIN) for part in parts_of(group.request))
    for name in order[:count]:
        for slot, request in KNOWN[name].items():
            number, count = drawn.find(f"{name}/{slot}")
            given = drawn.groups[number].request
            assert request.least <= count <= min(request.most, given.least)
            assert given.tail >= request.tail and set(request.measures) <= set(given.measures)
            for field in SHARED_FIELDS:
                assert agrees(getattr(request, field), getattr(given, field), getattr(RUN, field))


def parts_of(request: Request) -> list[object]:
    """All values of a request, those inside its records too."""
    return [part for field in SHARED_FIELDS for part in (getattr(request, field), *vars_of(getattr(request, field)))]


def vars_of(value: object) -> list[object]:
    return list(vars(value).values()) if isinstance(value, Strides | Boxes | Flips | Turns | Appearance) else []


def agrees(asked: object, given: object, run: object) -> bool:
    """Whether a group's field serves who asked."""
    if asked is ANY:
        return True
    if asked is PLAIN and isinstance(given, Strides) and len(run.choices) == 1:
        return (given.choices, given.short) == (run.choices, run.short)  # one choice is one stride, shared or not
    if asked is PLAIN:
        return given == run
    if vars_of(asked):
        return all(wanted is ANY or wanted == got for wanted, got in zip(vars_of(asked), vars_of(given), strict=True))
    return asked == given


@given(order=st.permutations(sorted(KNOWN)), count=st.integers(1, len(KNOWN) - 1))
@settings(max_examples=150, deadline=None)
def test_a_plugin_added_at_the_end_moves_nobody_else(order: list[str], count: int) -> None:
    """The others stay where they were, with whom they were, and draw from the stream they drew from."""
    before, after = mix(*order[:count]), mix(*order[: count + 1])
    for number, group in enumerate(before.groups):
        grown = after.groups[number]
        assert grown.stream == group.stream
        assert [slot for slot in grown.members if not slot.startswith(f"{order[count]}/")] == list(group.members)


def test_apart_says_who_wanted_what() -> None:
    (refusal,) = mix("statistics", "rotation").refusals
    assert (refusal.slot, refusal.group, refusal.field) == ("rotation/clip", "statistics/clip", "turns.choices")
    assert refusal.wants == "[0, 1, 2, 3]" and refusal.given == "[0]"


# Joining two ----------------------------------------------------------------------------------------------------------

strides = st.builds(
    Strides,
    st.sampled_from((ANY, (1,), (1, 2), Between(1, 2))),
    st.sampled_from((ANY, True, False)),
    st.sampled_from((ANY, "fit", "loop")),
)
boxes = st.builds(
    Boxes,
    st.sampled_from((ANY, Same(), Overlapping(), Centre())),
    st.sampled_from((ANY, (0.2, 1.0), (0.5, 1.0))),
)
appearances = st.builds(Appearance, st.sampled_from((ANY, "kept")), st.sampled_from((ANY, "clip", "frame")))
resolved = st.builds(
    Request,
    clips=st.one_of(st.integers(1, 3), st.sampled_from(((1, 2), (1, 3), (2, 4)))),
    frames=st.sampled_from((ANY, 8, 16)),
    size=st.sampled_from((ANY, 48)),
    tail=st.integers(0, 2),
    strides=st.one_of(st.just(ANY), strides),
    placement=st.sampled_from((ANY, Independent(), Overlapping(), Overlapping((0.5, 1.0)), Halves(), Uniform(4))),
    boxes=st.one_of(st.just(ANY), boxes),
    flips=st.sampled_from((ANY, Flips(0.5), Flips(0.0))),
    turns=st.sampled_from((ANY, Turns((0,)), Turns((0, 1, 2, 3)))),
    appearance=st.one_of(st.just(ANY), appearances),
    measures=st.sampled_from(((), (Measure("edges", edges),))),
)


def joined(left: Request, right: Request) -> Request | None:
    """The join, or None where there is none."""
    try:
        return join(left, right)
    except Contradiction:
        return None


@given(left=resolved, right=resolved)
@settings(max_examples=400, deadline=None)
def test_joining_commutes(left: Request, right: Request) -> None:
    assert joined(left, right) == joined(right, left)


@given(one=resolved, two=resolved, three=resolved)
@settings(max_examples=400, deadline=None)
def test_joining_is_associative_where_all_three_can_share(one: Request, two: Request, three: Request) -> None:
    first, last = joined(one, two), joined(two, three)
    if first is not None and last is not None:
        assert joined(first, three) == joined(one, last)


@given(request=resolved)
@settings(max_examples=200, deadline=None)
def test_joining_with_itself_or_with_who_does_not_care_changes_nothing(request: Request) -> None:
    alone = replace(request, clips=request.least)
    if joined(request, request) is None:  # made for fewer clips than it reads at least: refused before any joining
        with pytest.raises(PluginError):
            request.check("here")
        return
    assert joined(request, request) == alone
    assert joined(request, Request(clips=1, **dict.fromkeys(SHARED_FIELDS, ANY))) == alone


@given(left=resolved, right=resolved)
@settings(max_examples=300, deadline=None)
def test_a_join_serves_both(left: Request, right: Request) -> None:
    both = joined(left, right)
    if both is not None:
        for asked in (left, right):
            assert all(agrees(getattr(asked, field), getattr(both, field), None) for field in SHARED_FIELDS)
            assert both.least >= asked.least and both.tail >= asked.tail and set(asked.measures) <= set(both.measures)


def test_records_join_field_by_field() -> None:
    left, right = Request(strides=Strides(shared=True)), Request(strides=Strides((1, 2), short="fit"))
    both = join(resolve(left, RUN), resolve(right, RUN))
    assert both.strides == Strides((1, 2), True, "fit")
    with pytest.raises(Contradiction) as contradiction:
        join(Request(strides=Strides(short="fit")), Request(strides=Strides((1, 2), short="loop")))
    found = contradiction.value
    assert (found.name, found.left, found.right) == ("strides.short", "fit", "loop")


def test_plain_becomes_the_runs_value_and_any_yields_to_it() -> None:
    plain, any_ = resolve(Request(), RUN), resolve(Request(**dict.fromkeys(SHARED_FIELDS, ANY)), RUN)
    shared = {field: getattr(RUN, field) for field in SHARED_FIELDS} | {"strides": replace(RUN.strides, shared=ANY)}
    assert {field: getattr(plain, field) for field in SHARED_FIELDS} == shared  # a single stride is always shared
    assert all(getattr(any_, field) is ANY for field in SHARED_FIELDS) and complete(any_, RUN) == RUN
    assert complete(Request(boxes=Boxes(Same())), RUN).boxes == replace(RUN.boxes, layout=Same())
    assert join(plain, any_) == plain


def test_a_layout_made_for_fewer_clips_contradicts_a_group_that_needs_more() -> None:
    nothing = dict.fromkeys(SHARED_FIELDS, ANY)
    for fewer in (
        Request(clips=2, **{**nothing, "placement": Overlapping()}),
        Request(clips=2, **{**nothing, "boxes": Boxes(Overlapping())}),
    ):
        with pytest.raises(Contradiction) as contradiction:
            join(fewer, Request(clips=3, **nothing))
        assert contradiction.value.name == "clips"


@pytest.mark.parametrize("placement", [Overlapping(), Halves()])
def test_clips_placed_by_each_others_span_have_one_stride(placement: object) -> None:
    """Even where their request says nothing of strides: a neighbour that needs a stride for each clip stands apart."""
    pair = {"pair": Request(clips=2, **{**FREE, "placement": placement}, appearance=ANY)}
    of = plan({"pair": pair, "same_context": KNOWN["same_context"]}, RUN)
    assert members(of) == [{"pair"}, {"same_context"}] and of.refusals[0].field == "strides.shared"
    assert members(plan({"pair": pair, "pace": KNOWN["pace"]}, RUN)) == [{"pair", "pace"}]
    assert plan({"pair": pair, "pace": KNOWN["pace"]}, RUN).groups[0].request.strides.shared is True


# Counts, tails, measures ----------------------------------------------------------------------------------------------


def test_a_group_has_as_many_clips_as_its_most_demanding_member_and_each_reads_what_it_asked_for() -> None:
    asked = {"one": 1, "upto": (1, 2), "three": 3}
    (group,) = plan({name: {"clip": Request(clips=clips)} for name, clips in asked.items()}, RUN).groups
    assert group.request.clips == 3 and group.members == {"one/clip": 1, "upto/clip": 2, "three/clip": 3}
    (alone,) = plan({"upto": {"clip": Request(clips=(1, 2))}}, RUN).groups
    assert alone.request.clips == 1 and alone.members == {"upto/clip": 1}


def test_the_longest_tail_and_all_measures_serve_a_group() -> None:
    other = Measure("other", len)
    (group,) = plan(
        {
            "a": {"clip": Request(tail=1, measures=(Measure("edges", edges),))},
            "b": {"clip": Request(measures=(other, Measure("edges", edges)))},
        },
        RUN,
    ).groups
    assert group.request.tail == 1 and group.request.measures == (Measure("edges", edges), other)


def test_two_measures_of_one_name_are_an_error() -> None:
    slots = [{"clip": Request(measures=(Measure("edges", function),))} for function in (edges, len)]
    with pytest.raises(PluginError, match="measure 'edges'"):
        plan({"a": slots[0], "b": slots[1]}, RUN)


def test_slots_of_one_objective_never_join_each_other() -> None:
    of = plan({"a": {"left": Request(), "right": Request()}, "b": {"clip": Request()}}, RUN)
    assert [list(group.members) for group in of.groups] == [["a/left", "b/clip"], ["a/right"]]
    assert of.find("a/right") == (1, 1) and of.find("b/clip") == (0, 1)
    with pytest.raises(KeyError):
        of.find("c/clip")


@pytest.mark.parametrize(
    "request_, says",
    [
        (Request(clips=0), "at least one clip"),
        (Request(clips=(2, 1)), "in this order"),
        (Request(tail=-1), "negative"),
        (Request(clips=3, placement=Overlapping()), "made for 2"),
        (Request(clips=3, boxes=Boxes(Overlapping())), "made for 2"),
        (Request(clips=4, placement=Halves("sparse")), "made for 3"),
        (Request(clips=11, placement=Uniform()), "made for 10"),
    ],
)
def test_requests_that_no_data_can_satisfy_name_plugin_and_slot(request_: Request, says: str) -> None:
    with pytest.raises(PluginError, match="plugins.a: request 'clip'") as error:
        plan({"a": {"clip": request_}}, RUN)
    assert says in str(error.value)


# Switches -------------------------------------------------------------------------------------------------------------


def test_join_false_keeps_all_apart() -> None:
    assert members(mix("overlap", "pace", "rotation", joined=False)) == [{"overlap"}, {"pace"}, {"rotation"}]


def test_own_keeps_a_plugin_or_a_slot_apart() -> None:
    assert members(mix("overlap", "pace", "rotation", own=("pace",))) == [{"overlap", "rotation"}, {"pace"}]
    assert members(mix("pace", "overlap", "rotation", own=("pace",))) == [{"pace"}, {"overlap", "rotation"}]
    assert members(mix("crops", "rotation", own=("crops/large",))) == [{"crops"}, {"crops"}, {"rotation"}]


def test_groups_pin_plugins_together_and_others_out() -> None:
    names = ("overlap", "rotation", "contrast", "pace")
    assert members(mix(*names, groups=(("overlap", "pace"), ("contrast",)))) == [
        {"overlap", "pace"},
        {"rotation"},
        {"contrast"},
    ]
    assert members(mix(*names, groups=(("overlap", "contrast"), ("rotation", "pace")))) == [
        {"overlap", "contrast"},
        {"rotation", "pace"},
    ]


def test_a_group_that_cannot_be_names_both_sides_and_the_field() -> None:
    with pytest.raises(ConfigError) as error:
        mix("statistics", "rotation", groups=(("statistics", "rotation"),))
    for part in ("views.groups", "statistics/clip", "rotation/clip", "turns.choices", "[0]", "[0, 1, 2, 3]"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "views, says",
    [
        ({"own": ("pase",)}, "did you mean 'pace'"),
        ({"groups": (("pace", "nobody"),)}, "'nobody' is neither"),
        ({"groups": (("pace", "overlap"), ("pace",))}, "more than one place"),
        ({"groups": (("pace",),), "own": ("pace",)}, "more than one place"),
    ],
)
def test_switches_that_cannot_be_meant_are_one_sentence(views: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match="^views: [^\n]+$") as error:
        mix("overlap", "pace", **views)
    assert says in str(error.value)


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_requests_are_values(name: str) -> None:
    for request in KNOWN[name].values():
        copy = pickle.loads(pickle.dumps(request))
        assert copy == request and hash(copy) == hash(request) and "PLAIN" in repr(Request())
    assert pickle.loads(pickle.dumps(PLAIN)) is PLAIN and pickle.loads(pickle.dumps(ANY)) is ANY


def test_a_plan_is_plain_json() -> None:
    of = plan(
        {
            "a": {"clip": Request(strides=Strides((1, Fraction(1, 3))), measures=(Measure("edges", edges),))},
            "b": {"clip": Request()},
        },
        RUN,
    )
    told = json.loads(json.dumps(of.describe()))
    assert told["groups"][0]["members"] == {"a/clip": 1} and told["groups"][0]["request"]["measures"] == ["edges"]
    assert told["groups"][0]["request"]["strides"]["choices"] == [1, "1/3"]
    assert told["apart"][0]["field"] == "strides.choices" and told["apart"][0]["slot"] == "b/clip"
