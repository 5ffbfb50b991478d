"""The configuration is strict, names the key that is wrong, and is the same after a trip through a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from vssl_core import PluginConfig
from vssl_core.config import (
    FREE_KEYS,
    RunConfig,
    Schedule,
    build_options,
    check_weights,
    default_yaml,
    differences,
    flatten,
    from_yaml,
    load_config,
    read_yaml,
    to_tree,
    to_yaml,
)
from vssl_core.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A function that writes a text to a file and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Strictness -----------------------------------------------------------------------------------------------------------

WRONG = {
    "epochz: 3": "epochz: there is no such key; did you mean 'epochs'?",
    "zzzzzz: 3": "zzzzzz: there is no such key; there are backbone, data, clip",
    "optim: {lrr: 1}": "optim.lrr: there is no such key; did you mean 'lr'?",
    "data: {roots: /x}": "data.roots: there is no such key; did you mean 'root'?",
    "weights: {byol: {valeu: 1}}": "weights.byol.valeu: there is no such key; did you mean 'value'?",
    "weights: {byol: -1}": "weights.byol: input should be greater than or equal to 0, got -1",
    "weights: {byol: {value: -1}}": "weights.byol.value: input should be greater than or equal to 0, got -1",
    "weights: {byol: {start_epoch: 1.5}}": "weights.byol.start_epoch: input should be a valid integer",
    "weights: {byol: much}": "weights.byol: input should be a valid number",
    "weights: {byol: .inf}": "weights.byol: input should be a finite number",
    "weights: [1]": "weights: must hold keys and values, got [1]",
    "epochs: 0": "epochs: input should be greater than or equal to 1, got 0",
    "epochs: 1.5": "epochs: input should be a valid integer",
    "epochs: many": "epochs: input should be a valid integer",
    "epochs:": "epochs: input should be a valid integer, got None",
    "seed: 2147483648": "seed: input should be less than 2147483648",
    "optim: {lr: .nan}": "optim.lr: input should be a finite number, got nan",
    "optim: {lr: 0}": "optim.lr: input should be greater than 0, got 0",
    "optim: {name: adam}": "optim.name: input should be 'sgd', 'adamw' or 'lars', got 'adam'",
    "optim: {milestones: [1]}": "optim: milestones has no effect with name: sgd and schedule: cosine; remove it",
    "optim: {name: adamw, momentum: 0.5}": "optim: momentum has no effect with name: adamw",
    "optim: {betas: [0.5, 0.9]}": "optim: betas has no effect with name: sgd",
    "optim: {schedule: constant, final_lr: 0.1}": "optim: final_lr has no effect with name: sgd and schedule: constant",
    "optim: {warmup_lr: 0.1}": "optim: warmup_lr has no effect without warmup_epochs",
    "optim: {schedule: steps}": "optim: schedule: steps needs milestones",
    "views: {join: false, groups: [[stor, pace]]}": "views: groups has no effect with join: false",
    "views: {join: false, own: [stor]}": "views: own has no effect with join: false",
    "clip: {size: 100000}": "clip.size: input should be less than or equal to 1024",
    "clip: {area: [0.5, 0.2]}": "clip.area: must be (low, high) with 0 < low <= high, got [0.5, 0.2]",
    "clip: {area: [0.5, 2]}": "clip.area: is a share of the frame, at most 1",
    "clip: {area: [a, 1]}": "clip.area.0: input should be a valid number",
    "clip: {area: [1]}": "clip.area: needs 2 entries, got [1]",
    "clip: {area: []}": "clip.area: needs 2 entries, got []",
    "clip: {area: [0, 1, 2]}": "clip.area: needs at most 2 entries, got [0, 1, 2]",
    "clip: {short: bounce}": "clip.short: input should be 'fit', 'loop' or 'clamp', got 'bounce'",
    "clip: 3": "clip: must hold keys and values, got 3",
    "appearance: {brightness: -1}": "appearance.brightness: input should be greater than or equal to 0, got -1",
    "plugins: stor": "plugins: must hold keys and values, got 'stor'",
    "plugins: {stor: 3}": "plugins.stor: must hold keys and values, got 3",
    "plugins: {stor: false}": "plugins.stor: must hold keys and values, got False",
    "plugins: [stor, stor]": "plugins: names a plugin twice",
    "plugins: {stor: {}, stor: {}}": "'stor' stands there twice",
    "epochs: 3\nepochs: 4": "'epochs' stands there twice",
    "views: {groups: [stor, pace]}": "views.groups.0: must be a list, got 'stor'",
    "1: 2": "1: a key must be a word",
    "[1, 2]": "must hold keys and values, got a list",
    "optim: {lr: [": "is not YAML",
    "{a: b}: 3": "is not YAML",
    "seed: 2024-13-40": "is not YAML (month must be in 1..12)",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_file_and_key(written: Any, text: str) -> None:
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_mistake_is_told_and_the_others_counted(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"experiment.yaml: optim.lr: .*, got 0 \(and 2 more\)$"):
        load_config(written("epochs: 0\nbatch_size: 0\noptim: {lr: 0}"))
    with pytest.raises(ConfigError, match=r"unable to parse string as a number, got 'much'$"):  # no kind of weight
        load_config(written("weights: {byol: much}"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "experiment.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"experiment.yaml: cannot be read \(.*\); give the path of a YAML file"):
        load_config(str(path))


def test_an_empty_file_is_the_defaults(written: Any) -> None:
    assert load_config(written("# nothing\n")) == RunConfig() == load_config()


class Inner(PluginConfig):
    """Options inside options."""

    depth: int = Field(1, ge=1, description="how deep")


class Options(PluginConfig):
    """One option of each awkward kind."""

    layers: int = Field(2, ge=1, le=3, description="a bounded number")
    which: str | tuple[int, ...] = Field("all", description="a word or a list of numbers")
    inner: Inner = Field(Inner(), description="a section")
    named: dict[str, Inner] = Field({}, description="sections by names the user gives")
    width: int | None = Field(None, ge=1, description="a number or nothing")

    @model_validator(mode="after")
    def _used(self) -> Options:
        if self.layers == 1 and self.width is not None:
            raise ValueError("width has no effect with layers: 1; remove it")
        return self


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layer": 1}, "plugins.mine.layer: there is no such key; did you mean 'layers'?; remove or correct it"),
        ({"layers": 4}, "plugins.mine.layers: input should be less than or equal to 3, got 4"),
        ({"which": [1, "a"]}, "plugins.mine.which.1: input should be a valid integer"),
        ({"which": 3.5}, "plugins.mine.which: input should be a valid string, got 3.5"),
        ({"inner": {"dept": 1}}, "plugins.mine.inner.dept: there is no such key; did you mean 'depth'?"),
        ({"named": {"left": {"depth": 0}}}, "plugins.mine.named.left.depth: input should be greater than"),
        ({"named": {"int": {"dept": 0}}}, "plugins.mine.named.int.dept: there is no such key; did you mean 'depth'?"),
        ({"width": 0}, "plugins.mine.width: input should be greater than or equal to 1, got 0"),
        ({"layers": 1, "width": 8}, "plugins.mine: width has no effect with layers: 1; remove it"),
    ],
)
def test_errors_of_options_name_the_whole_key(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_options(Options, options, "mine")
    assert str(caught.value).startswith(told)


def test_a_weight_must_belong_to_an_objective() -> None:
    check_weights(RunConfig(weights={"pace": 2}), ["stor", "pace"])
    with pytest.raises(ConfigError, match=r"weights\.pacee: no objective .* did you mean 'pace'\?; remove the weight"):
        check_weights(RunConfig(weights={"pacee": 2}), ["stor", "pace"])
    with pytest.raises(ConfigError, match=r"weights\.pace\.start_epoch: epoch 3 never comes in 3 epochs"):
        check_weights(RunConfig(weights={"pace": Schedule(start_epoch=3)}, epochs=3), ["stor", "pace"])


def test_nothing_can_be_changed_afterwards() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 3  # type: ignore[misc]


# The command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1E-4", "optim.lr", 1e-4),
        ("optim.lr=.5e+1", "optim.lr", 5.0),
        ("optim.lr=3", "optim.lr", 3.0),
        ("epochs=7", "epochs", 7),
        ("data.root=null", "data.root", None),
        ("data.root=/a=b", "data.root", "/a=b"),
        ("data.group='1e5'", "data.group", "1e5"),
        ("clip.area=[0.5, 1]", "clip.area", [0.5, 1.0]),
        ("views.join=false", "views.join", False),
        ("views.groups=[[stor, pace], [byol]]", "views.groups", [["stor", "pace"], ["byol"]]),
        ("checkpoint={every_steps: 3}", "checkpoint.every_steps", 3),
        ("backbone.options.rate=1e-3", "backbone.options.rate", 1e-3),
        ("plugins.stor.rates=5", "plugins.stor.rates", 5),
        ("plugins.stor.some.deep.key=1", "plugins.stor.some.deep.key", 1),
        ("weights.stor=2", "weights.stor", 2.0),
        ("weights.stor={value: 2, ramp_epochs: 3}", "weights.stor.ramp_epochs", 3.0),
        ("weights.stor.start_epoch=2", "weights.stor.start_epoch", 2),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(override: str, key: str, value: Any) -> None:
    found = flatten(to_tree(load_config(plugins=["stor"], overrides=[override])))[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr", "'optim.lr': an override is key=value, for example optim.lr=0.1"),
        ("=3", "'=3': an override is key=value"),
        ("optim..lr=1", "'optim..lr=1': an override is key=value"),
        ("optim.lr=[", "'optim.lr=[': is not YAML"),
        ("optim.lr=fast", "config: optim.lr: input should be a valid number"),
        ("optim.lrr=1", "config: optim.lrr: there is no such key; did you mean 'lr'?"),
        ("optim.lr.x=1", "config: optim.lr: input should be a valid number"),
        ("optim=3", "config: optim: must hold keys and values, got 3"),
        ("plugins.sto.rates=3", "plugin 'sto' is not chosen; did you mean 'stor'?; choose it too, or leave this out"),
        ("plugins.byol.momentum=1", "plugin 'byol' is not chosen; choose it too, or leave this out"),
    ],
)
def test_an_override_that_cannot_be_is_named(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(plugins=["stor"], overrides=[override])
    assert told in str(caught.value)


def test_an_override_does_not_reach_into_a_value(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"'epochs.more=1': 'epochs' holds a value, not further keys"):
        load_config(written("epochs: 3"), overrides=["epochs.more=1"])


def test_later_overrides_win_over_earlier_and_over_the_file(written: Any) -> None:
    path = written("epochs: 3\noptim: {lr: 0.5, momentum: 0.5}\nweights: {stor: 3}\nplugins: [stor]")
    config = load_config(path, overrides=["epochs=4", "epochs=5", "optim.lr=0.25", "weights.stor.ramp_epochs=2"])
    assert config.epochs == 5
    assert (config.optim.lr, config.optim.momentum) == (0.25, 0.5)
    assert config.weights["stor"] == Schedule(value=3, ramp_epochs=2)


@pytest.mark.parametrize("plugins", ["[stor, pace]", "{stor: , pace: {}}", "{stor: {}, pace: }"])
def test_plugins_are_a_list_or_a_mapping(written: Any, plugins: str) -> None:
    assert load_config(written(f"plugins: {plugins}")).plugins == {"stor": {}, "pace": {}}
    config = load_config(written(f"plugins: {plugins}"), overrides=["plugins.pace.paces=[1, 2]"])
    assert config.plugins == {"stor": {}, "pace": {"paces": [1, 2]}}


def test_plugins_on_the_command_line_replace_the_set_and_keep_options(written: Any) -> None:
    path = written("plugins: {stor: {rates: 3}, pace: {paces: [1, 2]}, byol: }")
    config = load_config(path, plugins=["rotation", "pace", "byol"])
    assert list(config.plugins.items()) == [("rotation", {}), ("pace", {"paces": [1, 2]}), ("byol", {})]
    assert load_config(written("plugins: [stor]"), plugins=["pace"]).plugins == {"pace": {}}
    with pytest.raises(ConfigError, match="'pace' is named twice; name it once"):
        load_config(path, plugins=["pace", "stor", "pace"])
    with pytest.raises(ConfigError, match="plugin 'stor' is not chosen"):  # the file's, but dropped
        load_config(path, plugins=["pace"], overrides=["plugins.stor.rates=4"])


def test_data_on_the_command_line_replaces_source_and_root_alone(written: Any) -> None:
    config = load_config(written("data: {source: csv, root: /a, workers: 7}"), data=("demo", None))
    assert (config.data.source, config.data.root, config.data.workers) == ("demo", None, 7)
    with pytest.raises(ConfigError, match="data: must hold keys and values, got 3"):
        load_config(written("data: 3"), data=("demo", None))


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0), (1.99, 0), (2, 0), (3, 0.75), (4, 1.5), (5.5, 2.625), (6, 3), (100, 3)]
)
def test_a_schedule_starts_and_grows_evenly(epoch: float, expected: float) -> None:
    assert Schedule(value=3, start_epoch=2, ramp_epochs=4).at(epoch) == pytest.approx(expected)


@given(
    value=st.floats(0, 100),
    start=st.integers(0, 50),
    ramp=st.floats(0, 50),
    moments=st.lists(st.floats(0, 200), min_size=2, max_size=5).map(sorted),
)
def test_a_schedule_never_falls_and_ends_at_its_value(value: float, start: int, ramp: float, moments: Any) -> None:
    schedule = Schedule(value=value, start_epoch=start, ramp_epochs=ramp)
    weights = [schedule.at(moment) for moment in moments]
    assert weights == sorted(weights)
    assert all(0 <= weight <= value for weight in weights)
    assert schedule.at(start + ramp + 1) == value
    assert all(weight == 0 for weight, moment in zip(weights, moments, strict=True) if moment < start)


def test_a_weight_is_a_number_or_a_schedule_or_one() -> None:
    config = RunConfig(weights={"stor": 0, "pace": {"value": 2, "start_epoch": 1}})
    assert [config.weight("stor", 5), config.weight("byol", 5)] == [0, 1]
    assert [config.weight("pace", epoch) for epoch in (0, 0.99, 1)] == [0, 0, 2]


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_default_file_is_generated_from_the_code() -> None:
    path = ROOT / "configs/default.yaml"
    assert path.read_text(encoding="utf-8") == default_yaml()
    assert load_config(str(path)) == RunConfig()
    assert set(flatten(read_yaml(str(path)))) == set(flatten(to_tree(RunConfig())))


SETTLED = [
    {"optim": {"lr": 1e-5, "weight_decay": 1e-12}, "data": {"root": "1e-4", "group": "^v_(.*)_c", "source": "on"}},
    {"weights": {"stor": 0.1, "pace": {"value": 2, "start_epoch": 3}}, "plugins": {"stor": {}, "pace": {"a": "1E5"}}},
    {"clip": {"area": [0.1, 1], "aspect": [0.5, 2]}, "views": {"groups": [["a", "b"], ["c"]], "own": ["d"]}},
    {"optim": {"name": "adamw", "schedule": "steps", "milestones": [0.5, 3], "gamma": 0.3, "clip_norm": 1}},
]


@pytest.mark.parametrize("tree", SETTLED)
def test_what_a_run_writes_loads_to_the_same(written: Any, tree: dict[str, Any]) -> None:
    config = RunConfig.model_validate(tree)
    again = load_config(written(to_yaml(to_tree(config))))
    assert again == config
    assert list(again.plugins) == list(config.plugins)
    assert differences(to_tree(config), to_tree(again)) == []


def test_options_with_their_defaults_load_to_the_same(written: Any) -> None:
    from vssl_core.run.build import choose

    chosen = choose(load_config(plugins=["pace", "stor", "byol"], overrides=["plugins.stor.rates=3"]))
    again = choose(load_config(written(to_yaml(to_tree(chosen.config)))))
    assert again.config == chosen.config and again.options == chosen.options
    assert list(again.options) == ["pace", "stor", "byol"]


# Looks like numbers, words of YAML, signs: what a value may be once it is written and read again.
ODD = st.sampled_from("1e5 1.e+3 -.5E-7 0x1F 1_000 on null ~ 2024-01-01 1:30 = << a\nb".split(" ") + ["", " a"])
WORDS = st.text(st.characters(categories=("L", "N", "P", "S"))) | ODD
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_plain_values_survive_yaml(tree: dict[str, Any]) -> None:
    again = from_yaml(to_yaml(tree), "here")
    assert again == tree
    assert list(again) == list(tree)
    assert repr(flatten(again)) == repr(flatten(tree))  # kinds as well: 1 is not 1.0, nor True


# Comparing ------------------------------------------------------------------------------------------------------------

KEYS = st.text("abcd", min_size=1, max_size=2)
BRANCHES = st.recursive(st.integers(0, 2), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)
TREES = st.dictionaries(KEYS, BRANCHES, max_size=4)


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The slow way back."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


@given(TREES)
def test_flattening_loses_nothing(tree: dict[str, Any]) -> None:
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert not any(isinstance(value, dict) and value for value in flat.values())


@given(TREES, TREES)
def test_differences_are_those_of_any_key(before: dict[str, Any], after: dict[str, Any]) -> None:
    lines = differences(before, after)
    assert (lines == []) == (before == after)
    assert len(lines) == len(differences(after, before))
    old, new = flatten(before), flatten(after)
    changed = {key for key in old.keys() | new.keys() if (key in old, old.get(key)) != (key in new, new.get(key))}
    assert {line.partition(": ")[0] for line in lines} == changed


def test_differences_show_both_values() -> None:
    before = to_tree(RunConfig(weights={"stor": 1}))
    after = to_tree(RunConfig(epochs=3, weights={"stor": {"value": 2}}))
    assert differences(before, after)[:2] == ["epochs: 20 -> 3", "weights.stor: 1.0 -> absent"]
    assert "weights.stor.value: absent -> 2.0" in differences(before, after)


def test_the_order_of_plugins_is_a_difference() -> None:
    one, other = (to_tree(RunConfig(plugins=names)) for names in (["a", "b"], ["b", "a"]))
    assert differences(one, other) == ["plugins: ['a', 'b'] -> ['b', 'a']"]


CHANGES = {
    "checkpoint.every_steps": 3, "log.tensorboard": False, "data.workers": 0, "data.root": "/elsewhere",
    "data.decoder": "torchcodec", "data.max_bad_fraction": 0.5, "data.split": 2, "data.source": "csv", "seed": 1,
    "device.threads": 2, "device.kind": "cpu", "epochs": 21, "batch_size": 4, "init": "x", "optim.lr": 0.2,
    "views.join": False, "clip.short": "loop", "appearance.preset": "none", "backbone.name": "c3d", "combine.name": "x",
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_only_what_cannot_change_weights_is_free(key: str) -> None:
    tree = to_tree(RunConfig())
    after = unflatten({**flatten(tree), key: CHANGES[key]})
    free = key in FREE_KEYS or key.partition(".")[0] in FREE_KEYS
    assert free == (key.startswith(("checkpoint.", "log.")) or key in FREE_KEYS)
    assert [line.partition(": ")[0] for line in differences(tree, after)] == ([] if free else [key])


def test_a_free_key_is_whole_words() -> None:
    assert differences({"logs": 1, "data": {"rooted": 1}}, {"logs": 2, "data": {"rooted": 2}}) != []
    free = {"checkpoint", "log", "launch", "data.workers", "data.root", "data.decoder", "data.max_bad_fraction"}
    assert set(FREE_KEYS) == free
