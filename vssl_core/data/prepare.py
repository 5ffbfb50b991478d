"""A copy of a data set that decodes fast: short side 128, H.264, a key frame every 12 frames, all frames in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from rich.console import Console
from rich.text import Text

from vssl_core.data import decode
from vssl_core.data.check import bar
from vssl_core.data.containers import sentence
from vssl_core.data.frames import known_colours
from vssl_core.data.workers import Lost, each
from vssl_core.errors import DataError, VideoError

SHORT_SIDE = 128
KEY_FRAME_EVERY = 12
SUFFIX = ".mp4"
CHECKSUMS = "checksums.txt"
SKIPPED = "skipped.jsonl"

# No B-frames and no loop filter: the copy is read far more often than it is written.
_OPTIONS = {"preset": "fast", "crf": "18", "tune": "fastdecode", "bf": "0", "sc_threshold": "0", "threads": "1"}


@dataclass(frozen=True)
class Copied:
    """What came of one video: the checksum of its copy, or the reason why there is none."""

    checksum: str = ""
    reason: str = ""
    kept: bool = False  # it lay there already
    fatal: bool = False  # nothing can be written


@dataclass(frozen=True)
class Job:
    """One video to copy; `checksum` is that of a finished copy from an earlier time, if there is one."""

    source: str
    target: str
    checksum: str = ""


@dataclass(frozen=True)
class Prepared:
    """How many videos were written, lay there already, and were left out."""

    written: int
    kept: int
    skipped: int


def prepare(
    paths: Sequence[str], root: str, out: str, workers: int = 2, progress: bool = True, console: Console | None = None
) -> Prepared:
    """Copy the videos below `root` to the same places below `out`; begun again, it goes on where it was.

    Writes checksums.txt (as sha256sum does) and skipped.jsonl (path and reason of every video without a copy).
    Raises DataError for folders that cannot be used and when nothing can be written any more.
    """
    root, out = os.path.realpath(root), os.path.realpath(out)
    try:
        os.makedirs(out, exist_ok=True)
        if root == out:
            raise DataError(f"--out: {out} is the folder of the videos themselves; give another one")
        targets, skipped = _targets(paths, root, out)
        with _Records(out, targets, skipped) as records, bar(console or Console(stderr=True), progress) as shown:
            task = shown.add_task("copying", total=len(targets))
            for position, outcome in each(copy, records.jobs, workers):
                records.add(position, Copied(reason=outcome.reason) if isinstance(outcome, Lost) else outcome)
                shown.advance(task)
        return records.summary()
    except OSError as error:
        raise DataError(f"--out: {out} cannot be written: {sentence(error)}; choose another place") from error


def run_prepare(paths: list[str], root: str, out: str, workers: int) -> int:
    """The command: copy, print what was left out and a summary; 0 where all were copied, 1 where some were not."""
    console = Console()
    result = prepare(paths, root, out, workers, console=console)
    for line in Path(out, SKIPPED).read_text().splitlines():
        entry = json.loads(line)
        console.print(Text(f"{entry['path']}: {entry['reason']}"), soft_wrap=True)
    counts = f"{result.written} written, {result.kept} already there, {result.skipped} left out"
    console.print(Text(f"{out}: {counts}"), soft_wrap=True)
    return 1 if result.skipped else 0


# --- one video --------------------------------------------------------------------------------------------------------


def copy(job: Job) -> Copied:
    """Write the copy of one video, under its name only when it is whole."""
    if _is_finished(job):
        return Copied(job.checksum, kept=True)
    temporary = f"{job.target}.part"
    try:
        facts = decode.scan(job.source)
        os.makedirs(os.path.dirname(job.target), exist_ok=True)
        with closing(decode.sequence(job.source, facts.stream)) as frames:
            count = _encode(frames, temporary, facts)
        copied = decode.scan(temporary).frames
        if copied != count:
            return Copied(reason=f"its copy has {copied} frames instead of {count}")
        checksum = _checksum(temporary)
        os.replace(temporary, job.target)
        return Copied(checksum)
    except VideoError as error:
        return Copied(reason=error.reason)
    except OSError as error:  # reading raises VideoError, so this is about writing
        return Copied(reason=sentence(error), fatal=True)
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _encode(frames: Iterator[VideoFrame], path: str, facts: decode.Scan) -> int:
    """Encode frames as they are stored, with the turn for display told in the header; how many there were."""
    first = next(frames)
    rate = facts.rate.limit_denominator(1001) if facts.rate and 1 <= facts.rate <= 1000 else Fraction(25)
    height, width = _scaled_size(first.height, first.width)
    count = 0
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_OPTIONS)
        _set_up(stream, first, height, width)
        if facts.rotation:
            stream.set_display_rotation(facts.rotation)
        frame: VideoFrame | None = first
        while frame is not None:
            picture = known_colours(frame).reformat(width, height, "yuv420p", interpolation="AREA", threads=1)
            picture.pts, picture.time_base, picture.pict_type = count, 1 / rate, 0
            container.mux(stream.encode(picture))
            count += 1
            frame = next(frames, None)
        container.mux(stream.encode(None))
    return count


def _set_up(stream: VideoStream, first: VideoFrame, height: int, width: int) -> None:
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.thread_type = "NONE"
    context = stream.codec_context
    context.gop_size = KEY_FRAME_EVERY
    context.colorspace, context.color_range = first.colorspace, first.color_range


def _scaled_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with the short side at 128, never larger than they are, both even as 4:2:0 asks."""
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _is_finished(job: Job) -> bool:
    """Whether the copy is there, as it was written, and not older than the video."""
    try:
        if not job.checksum or os.stat(job.target).st_mtime < os.stat(job.source).st_mtime:
            return False
        return _checksum(job.target) == job.checksum
    except OSError:
        return False


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the folder -------------------------------------------------------------------------------------------------------


class _Records:
    """The two lists beside the copies: added to as videos are done, sorted at the end."""

    def __init__(self, out: str, targets: dict[str, str], skipped: list[dict[str, str]]) -> None:
        self.out = out
        self.names = list(targets)
        before = _checksums(out)
        self.jobs = [Job(targets[name], os.path.join(out, name), before.get(name, "")) for name in self.names]
        # What was copied from other videos at an earlier time stays on the list.
        self.sums = {name: checksum for name, checksum in before.items() if name not in targets}
        self.skipped = skipped
        self.done: list[Copied] = []

    def __enter__(self) -> _Records:
        self._log = _text_file(os.path.join(self.out, CHECKSUMS), "a")
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._log.close()
        if kind is None:
            _replace(os.path.join(self.out, CHECKSUMS), (f"{self.sums[name]}  {name}\n" for name in sorted(self.sums)))
            _replace(os.path.join(self.out, SKIPPED), sorted(json.dumps(line) + "\n" for line in self.skipped))

    def add(self, position: int, copied: Copied) -> None:
        name, job = self.names[position], self.jobs[position]
        if copied.fatal:
            raise OSError(copied.reason)
        self.done.append(copied)
        if copied.checksum:
            self.sums[name] = copied.checksum
            self._log.write(f"{copied.checksum}  {name}\n")
            self._log.flush()
            return
        self.skipped.append({"path": job.source, "reason": copied.reason})
        with suppress(FileNotFoundError):
            os.unlink(job.target)  # of an earlier time, when the video could be read

    def summary(self) -> Prepared:
        """The counts."""
        kept = sum(copied.kept for copied in self.done)
        return Prepared(sum(bool(copied.checksum) for copied in self.done) - kept, kept, len(self.skipped))


def _targets(paths: Sequence[str], root: str, out: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The name of every copy with its video, and the videos that cannot have one. Raises DataError for outsiders."""
    targets: dict[str, str] = {}
    skipped = []
    for path in dict.fromkeys(paths):
        folder, file = os.path.split(os.path.abspath(path))
        source = os.path.join(os.path.realpath(folder), file)  # links resolved as in `root`, but not the file's own
        if _lies_below(source, out):
            continue  # a copy from an earlier time, where `out` is a folder among the videos
        if not _lies_below(source, root):
            raise DataError(f"{path}: does not lie below {root}; give a folder that holds all videos")
        name = os.path.splitext(os.path.relpath(source, root))[0] + SUFFIX
        if name in targets:
            skipped.append({"path": path, "reason": f"its copy would overwrite that of {targets[name]}"})
        else:
            targets[name] = source
    return targets, skipped


def _lies_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _checksums(out: str) -> dict[str, str]:
    """Checksums by name from an earlier time; a line that a kill cut short is no line."""
    try:
        with _text_file(os.path.join(out, CHECKSUMS), "r") as file:
            pairs = [line.rstrip("\n").partition("  ") for line in file]
    except FileNotFoundError:
        return {}
    return {name: checksum for checksum, _, name in pairs if len(checksum) == 64 and name.endswith(SUFFIX)}


def _replace(path: str, lines: Iterable[str]) -> None:
    with _text_file(f"{path}.part", "w") as file:
        file.writelines(lines)
    os.replace(f"{path}.part", path)


def _text_file(path: str, mode: str) -> IO[str]:
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="\n")
