"""The drawings: their numbers in loops, what is chosen, what lies in the figures, and what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vssl_concepts.analysis import pictures
from vssl_concepts.drawings import Drawings, choose, class_similarity, likeness, plain, used, video_names
from vssl_concepts.figures import OPAQUE, Column, draw_attention
from vssl_core import ClipSettings, ConfigError, Context, ExtractedFeatures, SplitFeatures, UserError

STATIC, DYNAMIC, SIZE, MAP = 6, 4, 16, (2, 3, 3)
WIDTHS = {
    "concepts/q_static": STATIC,
    "concepts/q_dynamic": DYNAMIC,
    "concepts/maps": 2 * 2 * 3 * 3,
    "concepts/frames": 2 * SIZE * SIZE,
}
CLASSES = ("jump", "run", "walk")


def build(offered: dict[str, int] | None = None, **options: object) -> Drawings:
    context = Context(
        name="concepts",
        clip=ClipSettings(4, SIZE, 1),
        backbone=nn.Identity(),
        feature_dim=9,
        stages={name: (width, 1, 1, 1) for name, width in (WIDTHS if offered is None else offered).items()},
        videos=40,
        epochs=1,
        steps_per_epoch=1,
        batch_size=4,
        world_size=1,
    )
    return Drawings(Drawings.Config(**options), context)


def features(videos: int = 12, labelled: bool = True) -> ExtractedFeatures:
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(videos, 1, width, generator=generator) for name, width in WIDTHS.items()}
    vectors["concepts/maps"] = vectors["concepts/maps"].unflatten(2, (2, -1)).softmax(dim=3).flatten(2)
    labels = torch.arange(videos) % 3 if labelled else torch.full((videos,), -1)
    test = SplitFeatures(vectors, labels, tuple(f"{number}.mp4" for number in range(videos)))
    return ExtractedFeatures({"test": test}, CLASSES if labelled else (), (*WIDTHS, "stage5"), seed=0)


def test_class_means_and_their_cosines_in_loops():
    codes, labels = torch.randn(9, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1])
    found = class_similarity(codes, labels, torch.tensor([0, 1, 2]))
    means = [codes[[i for i in range(9) if labels[i] == label]].mean(dim=0) for label in range(3)]
    for i in range(3):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(F.cosine_similarity(means[i], means[j], dim=0).item(), abs=1e-5)


def test_likeness_goes_from_opposite_to_equal():
    assert likeness(torch.ones(3, 3)) == 100
    assert likeness(2 * torch.eye(2) - 1) == 0
    assert likeness(torch.eye(4)) == 50


def test_the_share_of_concepts_that_are_used():
    assert used(torch.eye(4)) == 100
    assert used(torch.tensor([[1.0, 0, 0, 0], [2.0, 1, 0, 0]])) == 25


def test_the_concepts_used_most_are_chosen_and_the_videos_where_they_are_most_active():
    codes = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.1, 0.0], [0.7, 0.6, 0.0]])
    assert choose(codes, concepts=3, videos=2) == {0: [0, 3], 1: [1]}
    assert choose(codes, concepts=1, videos=9) == {0: [0, 3, 2]}


def test_its_tables_say_what_its_figures_show(tmp_path: Path):
    source = features()
    result = build(concepts=2, videos=3).run(source)
    assert set(result.figures) == {"similarity", "static_attention", "dynamic_attention"} == set(result.tables)
    json.dumps(dict(result.tables), allow_nan=False)
    rows, test = result.tables["static_attention"], source.splits["test"]
    codes = test.vectors["concepts/q_static"][:, 0]
    for row in rows:
        video = int(Path(row["video"]).stem)
        assert codes[video].argmax() == row["concept"]
        assert row["activation"] == pytest.approx(float(codes[video].max()), abs=1e-6)
        found: Tensor = torch.tensor(row["map"])
        assert found.shape == MAP and found.sum().item() == pytest.approx(1, abs=1e-4)
        wanted = test.vectors["concepts/maps"][video, 0].view(2, *MAP)[0]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    matrix = torch.tensor(result.tables["similarity"]["dynamic"])
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3))
    for name, figure in result.figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert all(0 <= value <= 100 for value in result.metrics.values()) and len(result.metrics) == 4


def test_the_dynamic_maps_are_the_second_ones():
    source = features()
    (row, *_) = build(concepts=1, videos=1).run(source).tables["dynamic_attention"]
    wanted = source.splits["test"].vectors["concepts/maps"][int(Path(row["video"]).stem), 0].view(2, *MAP)[1]
    torch.testing.assert_close(torch.tensor(row["map"]), wanted, atol=1e-6, rtol=0)


def test_frames_are_gray_small_and_the_middle_of_each_moment():
    clip = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 3, 8, 80, 80)
    found = pictures(clip, 2).unflatten(1, (2, 56, 56))
    torch.testing.assert_close(found[:, 0], torch.full((2, 56, 56), 2.0))
    torch.testing.assert_close(found[:, 1], torch.full((2, 56, 56), 6.0))
    assert pictures(clip[:, :, :1, :7, :7], 1).shape == (2, 49)


def layers(shares: Tensor) -> list[Tensor]:
    """Of each cell of a figure, how opaque the colour over its frames is."""
    maps = shares / shares[0].numel()
    column = Column(3, 9, ["run"] * len(shares), [0.5] * len(shares), maps, torch.rand(len(shares), *MAP[:1], 8, 8))
    figure = draw_attention("static", [column], 12)
    cells = [axes for axes in figure.axes if len(axes.images) == 2]
    return [torch.tensor(axes.images[1].get_array()[..., 3]) for axes in cells]


def test_colour_lies_where_a_concept_looks_and_nowhere_where_it_looks_everywhere():
    corner = torch.full(MAP, 0.5)
    corner[1, 0, 2] = 9.5
    (drawn,) = layers(corner[None])
    assert drawn.shape == (8, 16) and drawn[0, 15] == drawn.max() == pytest.approx(OPAQUE)
    assert not drawn[:, :8].any() and not drawn[6:].any()
    assert not any(cell.any() for cell in layers(torch.rand(3, *MAP) * 0.04 + 0.98))


def test_videos_without_classes_are_drawn_without_the_matrices():
    result = build().run(features(labelled=False))
    assert set(result.metrics) == {"static_used", "dynamic_used"}
    assert set(result.figures) == {"static_attention", "dynamic_attention"}


def test_a_run_without_attention_has_its_codes_drawn():
    codes = {name: width for name, width in WIDTHS.items() if "/q_" in name}
    assert build(codes).needs().stages == tuple(codes) and set(build(codes).run(features()).figures) == {"similarity"}
    assert build().needs().stages == tuple(WIDTHS) and build(attention=False).needs().stages == tuple(codes)


def test_a_run_without_concepts_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"plugins\.concepts: .*'concepts/q_static'"):
        build({"stage5": 9}).needs()
    with pytest.raises(ConfigError, match="concepts/maps"):
        build({name: 3 for name in WIDTHS if "/q_" in name}, attention=True).needs()


def test_features_that_are_not_finite_are_refused_in_a_sentence():
    source = features()
    source.splits["test"].vectors["concepts/q_dynamic"][0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"evaluation 'concepts': .*q_dynamic are not finite"):
        build().run(source)


def test_videos_are_called_by_their_class_or_their_file():
    assert video_names(features(3).splits["test"], CLASSES) == list(CLASSES)
    assert video_names(features(2, labelled=False).splits["test"], ()) == ["0", "1"]


def test_numbers_are_not_longer_than_they_are_true():
    assert plain(torch.tensor([[0.1, 2 / 3]])) == [[0.1, 0.666667]]
