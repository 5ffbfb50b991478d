"""Two clips of a video, ready for a net, made by vssl and in the order of work of other loaders.

Same files, same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssl_core.data import clips as clip_room
from vssl_core.data.appearance import NORMALISATIONS
from vssl_core.data.batches import prepare
from vssl_core.data.clips import Cutter
from vssl_core.data.raw import Visit, collate
from vssl_core.joining import Group
from vssl_core.looks import PRESETS, Recipe
from vssl_core.requests import Appearance, Boxes, Flips, Independent, Request, Strides, Turns
from vssl_core.windows import Sample, Window, draw_windows

CLIPS, FRAMES, SIZE, SECONDS = 2, 16, 112, 2
AREA, ASPECT, FLIP = (0.2, 1.0), (3 / 4, 4 / 3), 0.5
JITTER = PRESETS["strong"]  # colour, gray and blur as MoCo v2 draws them
NORMALISATION = NORMALISATIONS["imagenet"]
TOGETHER = 8  # videos in a batch
SEED = 0


@dataclass(frozen=True)
class Video:
    """A file, and how two seconds of it become a clip."""

    path: str
    number: int
    rate: Fraction  # frames a second
    span: int  # frames from the first to the last of a clip
    stride: Fraction

    @staticmethod
    def of(path: str, number: int) -> Video:
        """The video at this path."""
        facts = clip_room.scan(path)
        rate = facts.rate or Fraction(25)
        span = max(min(round(SECONDS * rate), facts.frames), FRAMES)
        return Video(path, number, rate, span, Fraction(span - 1, FRAMES - 1))

    def group(self, clips: int = CLIPS) -> Group:
        """The clips of this video, as a run would ask for them."""
        request = Request(
            clips=clips,
            frames=FRAMES,
            size=SIZE,
            strides=Strides((self.stride,), shared=False, short="fit"),
            placement=Independent(),
            boxes=Boxes(Independent(), AREA, ASPECT),
            flips=Flips(FLIP),
            turns=Turns((0,)),
            appearance=Appearance("jittered", "clip"),
        )
        return Group(request, {"bench/pair": clips})

    def windows(self, repetition: int) -> tuple[Window, ...]:
        """What the clips of one repetition show, for the other side to show the same."""
        facts, group = clip_room.scan(self.path), self.group()
        return draw_windows(
            group.request, self.sample(repetition), group.stream, facts.frames, (facts.height, facts.width)
        )

    def sample(self, repetition: int) -> Sample:
        """What all random numbers of one repetition are drawn from."""
        return Sample(SEED, repetition + 1, 0, self.number)


def videos(paths: Sequence[str]) -> list[Video]:
    """The videos at these paths."""
    return [Video.of(path, number) for number, path in enumerate(paths)]


class Ours:
    """What vssl does from file to clip: `output` is "uint8" as it leaves the loader, else float as the net reads it."""

    def __init__(self, found: Sequence[Video], recipe: Recipe, output: str) -> None:
        self.videos, self.recipe, self.output = found, recipe, output
        self.cutters = [Cutter((video.group(),), (recipe,)) for video in found]

    def __call__(self, repetition: int) -> list[Tensor]:
        """Both clips of every video, a batch after the other.

        (B, 3, 16, 112, 112), or as bytes (B, 2, 16, 112, 112, 3).
        """
        batches = []
        for start in range(0, len(self.videos), TOGETHER):
            together = range(start, min(start + TOGETHER, len(self.videos)))
            batches += self._batch(together, repetition)
        return batches

    def _batch(self, together: range, repetition: int) -> list[Tensor]:
        samples = []
        for number in together:
            video = self.videos[number]
            groups = self.cutters[number].cut(video.path, video.sample(repetition))
            samples.append({"visit": Visit(repetition, 0, number), "groups": groups, "ledger": []})
        raw = collate(samples)
        if self.output == "uint8":
            return [clip.frames for clip in raw.groups[0]]
        group = self.videos[together[0]].group()
        return [clip.clip for clip in prepare(raw, (group,), (self.recipe,), NORMALISATION)[0]]


# Orders of work of others ---------------------------------------------------------------------------------------------


def decode_all(found: Sequence[Video]) -> Callable[[int], list[Tensor]]:
    """For each clip the whole video decoded and converted, the wanted frames taken, cropped and scaled: bytes out."""

    def run(repetition: int) -> list[Tensor]:
        return [_cut(_all_frames(video.path), window) for video in found for window in video.windows(repetition)]

    return run


def _all_frames(path: str) -> list[np.ndarray]:
    import av

    with av.open(path) as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _cut(frames: list[np.ndarray], window: Window) -> Tensor:
    """(16, 3, 112, 112) uint8 of the window's frames, cropped first."""
    top, left, height, width = window.box
    last = len(frames) - 1
    wanted = [frames[min(index, last)][top : top + height, left : left + width] for index in window.indices]
    clip = torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2)
    clip = torch.nn.functional.interpolate(clip, (SIZE, SIZE), mode="bilinear", antialias=True)
    return clip.flip(-1) if window.flip else clip


def vjepa2_order(found: Sequence[Video]) -> Callable[[int], list[Tensor]]:
    """decord, all clips of a video in one call.

    Float at full size, then crop, scale, flip, normalise: as V-JEPA 2 loads.
    """
    import decord

    mean, deviation = (
        torch.tensor(values).view(3, 1, 1, 1) * 255 for values in (NORMALISATION.mean, NORMALISATION.deviation)
    )

    def run(repetition: int) -> list[Tensor]:
        return [clip for video in found for clip in load(video, video.windows(repetition))]

    def load(video: Video, windows: tuple[Window, ...]) -> list[Tensor]:
        reader = decord.VideoReader(video.path, num_threads=1, ctx=decord.cpu(0))
        last = len(reader) - 1
        indices = np.minimum(np.concatenate([window.indices for window in windows]), last)
        frames = reader.get_batch(indices).asnumpy()  # (32, H, W, 3)
        pieces = np.split(frames, len(windows))
        return [finish(torch.from_numpy(piece), window) for piece, window in zip(pieces, windows, strict=True)]

    def finish(piece: Tensor, window: Window) -> Tensor:
        top, left, height, width = window.box
        whole = piece.float().permute(3, 0, 1, 2)  # (3, 16, H, W)
        box = whole[:, :, top : top + height, left : left + width]
        clip = torch.nn.functional.interpolate(box, (SIZE, SIZE), mode="bilinear", align_corners=False)
        clip = clip.flip(-1) if window.flip else clip
        return (clip - mean) / deviation

    return run


def pytorchvideo(found: Sequence[Video]) -> Callable[[int], list[Tensor]]:
    """PyTorchVideo's own LabeledVideoDataset and transforms, with the colour jitter and blur of its MoCo v2 recipe.

    Its sampler is told where the clips begin; boxes and flips it draws itself, from the same distributions.
    """
    from vssl_core.compat import mend

    mend()
    from pytorchvideo.data import LabeledVideoDataset
    from pytorchvideo.data.clip_sampling import ClipInfoList, ClipSampler

    class Planned(ClipSampler):
        """Two clips of a video, where the windows of the repetition begin."""

        repetition = 0

        def __call__(self, last_clip_time: Any, video_duration: Any, annotation: dict[str, Any]) -> ClipInfoList:
            video = found[annotation["number"]]
            starts = [window.start / video.rate for window in video.windows(self.repetition)]
            ends = [start + video.span / video.rate for start in starts]
            return ClipInfoList(starts, ends, [0] * CLIPS, [0] * CLIPS, [True] * CLIPS)

    sampler = Planned(SECONDS)
    finish = _pytorchvideo_transform()
    dataset = LabeledVideoDataset(
        [(video.path, {"number": number}) for number, video in enumerate(found)],
        sampler,
        torch.utils.data.SequentialSampler,
        transform=lambda sample: [finish(clip) for clip in sample["video"]],
        decode_audio=False,
        decoder="pyav",
    )

    def run(repetition: int) -> list[Tensor]:
        sampler.repetition = repetition
        torch.manual_seed(repetition + 1)
        return [clip for sample in dataset for clip in sample]

    return run


def _pytorchvideo_transform() -> Callable[[Tensor], Tensor]:
    """A whole clip (3, T, H, W) float in [0, 255] to what the net reads (3, 16, 112, 112)."""
    from pytorchvideo.transforms import Div255, Normalize, RandomResizedCrop, UniformTemporalSubsample
    from torchvision import transforms

    return transforms.Compose(
        [
            UniformTemporalSubsample(FRAMES),
            Div255(),
            _tall_jitter(),
            Normalize(NORMALISATION.mean, NORMALISATION.deviation),
            RandomResizedCrop(SIZE, SIZE, AREA, ASPECT),
            transforms.RandomHorizontalFlip(FLIP),
        ]
    )


def _tall_jitter() -> Callable[[Tensor], Tensor]:
    """The jitter of that recipe: all frames below each other as one picture of PIL, before the crop."""
    from PIL import ImageFilter
    from torchvision import transforms

    low, high = JITTER.blur_sigma
    jitter = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomApply(
                [transforms.ColorJitter(JITTER.brightness, JITTER.contrast, JITTER.saturation, JITTER.hue)],
                JITTER.jitter_probability,
            ),
            transforms.RandomGrayscale(JITTER.gray_probability),
            transforms.RandomApply(
                [lambda picture: picture.filter(ImageFilter.GaussianBlur(low + (high - low) * torch.rand(()).item()))],
                JITTER.blur_probability,
            ),
            transforms.ToTensor(),
        ]
    )

    def apply(clip: Tensor) -> Tensor:
        channels, frames, height, width = clip.shape
        picture = jitter(clip.reshape(channels, frames * height, width))
        return picture.reshape(channels, frames, height, width)

    return apply


# The floor ------------------------------------------------------------------------------------------------------------


def floor(found: Sequence[Video]) -> Callable[[int], int]:
    """Decoding alone, of the span of each clip and nothing else, spans that meet as one.

    No picture is converted or kept.
    """

    def run(repetition: int) -> int:
        return sum(_decode_spans(video.path, video.windows(repetition)) for video in found)

    return run


def _decode_spans(path: str, windows: Sequence[Window]) -> int:
    """How many frames were decoded."""
    import av

    facts = clip_room.scan(path)
    spans = sorted((int(window.indices.min()), int(window.indices.max())) for window in windows)
    count, reached = 0, -1
    with av.open(path) as container:
        stream = container.streams.video[facts.stream if facts.stream >= 0 else 0]
        stream.thread_type = "NONE"
        for first, last in spans:
            key = _key_before(facts, first)
            if last <= reached:
                continue
            if facts.times is not None and key > reached:
                container.seek(int(facts.times[key]), stream=stream)
                reached = key - 1
            for _ in container.decode(stream):
                count, reached = count + 1, reached + 1
                if reached >= last:
                    break
    return count


def _key_before(facts: Any, frame: int) -> int:
    keys = facts.keys if facts.keys is not None else np.empty(0, np.int32)
    place = int(np.searchsorted(keys, frame, side="right"))
    return int(keys[place - 1]) if place else 0
