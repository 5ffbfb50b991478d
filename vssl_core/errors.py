"""What goes wrong, by who can mend it: the user (exit code 2, one sentence), one video, or us."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class VsslError(Exception):
    """Everything that is raised on purpose; its text is one sentence: where, what is wrong, what to do."""


class UserError(VsslError):
    """The user's mistake: printed without a traceback, exit code 2."""


class ConfigError(UserError):
    """A key, a value or a combination in the configuration that cannot be used."""


class PluginError(UserError):
    """A plugin that cannot be found, loaded, or trusted."""


class DataError(UserError):
    """A list, folder or set of videos that cannot be trained on."""


class CheckpointError(UserError):
    """A saved file that cannot be restored into this run."""


@contextmanager
def told_of(where: str) -> Iterator[None]:
    """Let the sentence of a user's mistake that is made in here begin with where it is made."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error


class VideoError(VsslError):
    """One video cannot be read: `path` and `reason` go to the ledger, the run goes on.

    `advice` is what to do where no other video can be read either.
    """

    def __init__(self, path: str, reason: str, advice: str = "run `vssl data check` on the source") -> None:
        super().__init__(path, reason, advice)  # as arguments, so that the error survives pickling between processes
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The suggestion to put at the end of an error sentence, or nothing where no word is close."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
