"""Finding and loading plugins: where pluggy and entry points keep silent, vssl speaks, in one sentence with names."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from typing import Annotated, Any, Literal

import pluggy
import pytest
from pydantic import Field

from vssl_core import PluginConfig, hookspecs
from vssl_core.errors import PluginError
from vssl_core.plugins import GROUP, installed, listen, load, new_manager

QUIET = '''
"""Watches."""
from vssl_core import hookimpl

@hookimpl
def vssl_run_start(run):
    pass
'''
TRAINED = """
from vssl_core import Objective, Request, Terms, hookimpl

class Task(Objective):
    def requests(self):
        return {"clip": Request()}

    def forward(self, batch):
        return Terms({"size": batch["clip"][0].features.vector.square().mean()})
"""

OFFER = """
@hookimpl
def vssl_objective():
    return Task
"""


def refusal(*names: str) -> str:
    """What is said when these plugins are loaded."""
    with pytest.raises(PluginError) as told:
        load(names)
    assert "\n" not in str(told.value)
    return str(told.value)


# Names ----------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_a_suggestion(distribute):
    distribute("vssl-watch", {"watchful": "vssl_watch"}, {"vssl_watch.py": QUIET})
    told = refusal("watchfull")
    assert told.startswith("plugins: no plugin named 'watchfull' is installed; did you mean 'watchful'?")
    assert "install" not in told.partition("did you mean")[2]  # one piece of advice is enough


def test_an_unknown_name_unlike_any_gets_the_list(distribute):
    distribute("vssl-watch", {"watchful": "vssl_watch"}, {"vssl_watch.py": QUIET})
    assert "there are " in (told := refusal("qqqqqq")) and "watchful" in told
    assert "install the distribution that offers it" in told


def test_a_name_that_two_distributions_offer_is_refused_with_both(distribute):
    distribute("vssl-one", {"echo": "vssl_one"}, {"vssl_one.py": QUIET})
    distribute("vssl-two", {"echo": "vssl_two"}, {"vssl_two.py": QUIET})
    assert refusal("echo") in (
        "plugins: 'echo' is offered by vssl-one (vssl_one) and vssl-two (vssl_two); uninstall one of them",
        "plugins: 'echo' is offered by vssl-two (vssl_two) and vssl-one (vssl_one); uninstall one of them",
    )
    assert "vssl_one" not in sys.modules and "vssl_two" not in sys.modules
    load([name for name, offers in installed().items() if len(offers) == 1][:1])  # others can be used


def test_a_name_twice_is_refused(distribute):
    distribute("vssl-watch", {"watchful": "vssl_watch"}, {"vssl_watch.py": QUIET})
    assert refusal("watchful", "watchful") == "plugins: 'watchful' is named 2 times; name it once"


@pytest.mark.parametrize("name", ["Echo", "my.echo", "a b"])
def test_a_name_that_config_keys_cannot_hold_is_refused(distribute, name):
    distribute("vssl-odd", {name: "vssl_odd"}, {"vssl_odd.py": QUIET})
    assert "is not a usable name; its author must use small letters" in refusal(name)


# Modules --------------------------------------------------------------------------------------------------------------


def test_only_what_is_named_is_imported(distribute):
    distribute("vssl-good", {"good": "vssl_good"}, {"vssl_good.py": QUIET})
    distribute("vssl-bad", {"bad": "vssl_bad"}, {"vssl_bad.py": "raise RuntimeError('I break everything')"})
    manager, plugins = load(["good"])
    assert list(plugins) == ["good"] and plugins["good"].kind == "observer"
    assert "vssl_bad" not in sys.modules
    told = refusal("bad")
    assert told.startswith("plugin 'bad' of vssl-bad 1.0: cannot be imported (RuntimeError: I break everything)")


def test_a_broken_stranger_does_not_hide_the_others_in_the_list(distribute, capsys, monkeypatch):
    from vssl_core.commands.plugins import show

    monkeypatch.setenv("COLUMNS", "200")
    distribute("vssl-good", {"good": "vssl_good"}, {"vssl_good.py": QUIET})
    distribute("vssl-bad", {"bad": "vssl_bad"}, {"vssl_bad.py": "import no_such_module"})
    assert show(None) == 0
    said = capsys.readouterr().out
    assert "vssl-good 1.0" in said and "cannot be used" in said and "no_such_module" in said


def test_what_an_option_takes_is_told_in_words():
    from vssl_core.commands.plugins import values

    class Options(PluginConfig):
        how: Literal["fit", "loop"] = "fit"
        many: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
        each: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, max_length=3)
        area: tuple[float, float] = (0.0, 1.0)
        some: Literal["all"] | tuple[str, ...] = "all"
        count: int | None = Field(None, ge=1, le=10**9)
        named: dict[str, bool] = Field({}, min_length=2)
        free: Any = None

    assert {name: values(field) for name, field in Options.model_fields.items()} == {
        "how": "one of fit, loop",
        "many": "list of whole numbers, at least 1 entry, or null",
        "each": "list (each number, above 0), at most 3 entries, or null",
        "area": "list of 2 numbers",
        "some": "one of all, or list of texts",
        "count": "whole number, at least 1, at most 1000000000, or null",
        "named": "keys and values (each true or false), at least 2 entries",
        "free": "anything",
    }


def test_no_option_of_an_installed_plugin_is_told_in_python():
    from vssl_core.commands.plugins import values

    plugins = load([name for name, offers in installed().items() if offers[0].distribution == "vssl"])[1]
    for name, plugin in plugins.items():
        for option, field in plugin.options.model_fields.items():
            told = values(field)
            python = re.search(r"[\[\]|]|None|Literal|Annotated|\b(str|int|float|bool|tuple|dict)\b", told)
            assert not python, f"{name}.{option}: {told}"


def offering(hook: str, what: str) -> str:
    """A module that offers something."""
    return f"from vssl_core import hookimpl\n@hookimpl\ndef {hook}(): return {what}"


REFUSED = {
    "misspelt": (QUIET.replace("vssl_run_start", "vssl_run_begin"), "there is no hook 'vssl_run_begin'; did you mean"),
    "another name": (QUIET.replace("vssl_run_start", "run_start"), "unknown hook 'run_start'"),
    "another specification": (QUIET.replace("@hookimpl", "@hookimpl(specname='vssl_x')"), "unknown hook 'vssl_x'"),
    "not marked": (QUIET.replace("@hookimpl\n", ""), "'vssl_run_start' is not marked as a hook; write @hookimpl above"),
    "wrong argument": (QUIET.replace("(run)", "(run, epoch)"), "hook 'vssl_run_start'.*{'epoch'}.*hookspecs.py"),
    "no class": (offering("vssl_objective", "3"), "must return a subclass of vssl_core.Objective, got 3"),
    "error": (offering("vssl_objective", "no_such"), "vssl_objective failed .NameError"),
    "other class": (offering("vssl_evaluation", "dict"), "subclass of vssl_core.Evaluation, got <class 'dict'>"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_hook_that_would_never_be_called_is_refused(distribute, how):
    text, sentence = REFUSED[how]
    distribute("vssl-odd", {"odd": "vssl_odd"}, {"vssl_odd.py": text})
    told = refusal("odd")
    assert told.startswith("plugin 'odd' of vssl-odd 1.0: ")
    assert re.search(sentence, told), told


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        ("vssl_step_ends(self, run, report)", "there is no hook 'vssl_step_ends'; did you mean 'vssl_step_end'?"),
        ("vssl_step_end(self, run, batch)", ".*{'batch'}"),
        ("step_end(self, run)", ".*unknown hook 'step_end'"),
    ],
)
def test_a_hook_of_an_objective_is_checked_as_a_plugins_is(distribute, tmp_path, hook, sentence):
    from vssl_core.testing.trial import Trial

    objective = f"{TRAINED}\n    @hookimpl\n    def {hook}:\n        pass\n\n"
    distribute("vssl-task", {"task": "vssl_task"}, {"vssl_task.py": objective + OFFER})
    (plugin,) = load(["task"])[1].values()
    with pytest.raises(PluginError, match=f"plugin 'task': {sentence}"):
        Trial(plugin, {}, tmp_path).record("run")


def test_all_arguments_or_some_or_none(distribute):
    text = QUIET + "\n@hookimpl\ndef vssl_step_end(report):\n    pass\n\n@hookimpl\ndef vssl_run_end():\n    pass\n"
    distribute("vssl-watch", {"watchful": "vssl_watch"}, {"vssl_watch.py": text})
    manager, _ = load(["watchful"])
    manager.hook.vssl_step_end(run=None, report=None)
    manager.hook.vssl_run_end(run=None, error=None)


def test_every_hook_has_words_and_is_one():
    hooks = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("vssl_")}
    manager = new_manager()
    assert set(vars(manager.hook)) - {"__dict__"} >= set(hooks)
    assert all(spec.__doc__ for spec in hooks.values())


def test_listeners_are_called_with_the_last_first():
    """What pluggy does, and why work is no hook: results come last registered first, and None is dropped."""
    manager, heard = new_manager(), []

    def listener(name: str) -> object:
        def vssl_run_start(run: object) -> None:
            heard.append(name)

        return type(name, (), {"vssl_run_start": staticmethod(hookspecs.hookimpl(vssl_run_start))})

    for name in ("first", "second"):
        listen(manager, listener(name), name, name)
    assert manager.hook.vssl_run_start(run=None) == []
    assert heard == ["second", "first"]
    assert isinstance(manager, pluggy.PluginManager)


# Distributions --------------------------------------------------------------------------------------------------------


def test_a_distribution_that_stands_on_the_path_twice_offers_once(distribute, tmp_path, monkeypatch):
    distribute("vssl-watch", {"watchful": "vssl_watch"}, {"vssl_watch.py": QUIET})
    monkeypatch.syspath_prepend(tmp_path / "site-vssl-watch")
    assert len(installed()["watchful"]) == 1
    load(["watchful"])


def test_ours_load_as_a_strangers_do():
    ours = {point.name for point in metadata.distribution("vssl").entry_points if point.group == GROUP}
    offers = installed()
    assert ours <= set(offers)
    assert {offers[name][0].distribution for name in ours} == {"vssl"}


def test_listing_imports_no_plugin():
    program = "import sys; from vssl_core.plugins import installed; installed(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert not [name for name in imported if name.startswith("vssl_") and name != "vssl_core"]
    assert "vssl_core" in imported and "torch" not in imported
