"""Nets of PyTorchVideo's model zoo, built by its own builders with their own initialisation, heads removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vssl_core.errors import ConfigError
from vssl_core.nets.blocks import (
    create_csn,
    create_multiscale_vision_transformers,
    create_r2plus1d,
    create_resnet,
    create_slowfast,
    create_x3d,
)
from vssl_core.nets.stages import Backbone, Chain

BOTTLENECK = (64, 256, 512, 1024, 2048)


def slow_r50() -> Chain:
    """The slow pathway of SlowFast alone, a ResNet-50; time is never strided. Stage 1 is the stem with its pool."""
    return _headless("slow_r50", BOTTLENECK, create_resnet(model_depth=50, stem_conv_kernel_size=(1, 7, 7)))


def r2plus1d_r50() -> Chain:
    """R(2+1)D of bottleneck blocks, 50 layers."""
    return _headless("r2plus1d_r50", BOTTLENECK, create_r2plus1d())


def csn_r101() -> Chain:
    """Channel-separated convolutions, 101 layers (Tran et al., ICCV 2019). Stage 1 is the stem with its pool."""
    return _headless("csn_r101", BOTTLENECK, create_csn(model_depth=101, stem_pool=nn.MaxPool3d))


def x3d_s() -> Chain:
    """X3D-S without the wide last convolution, which belongs to its head; meant for 13 frames of 160 pixels."""
    return _x3d("x3d_s")


def x3d_m() -> Chain:
    """X3D-M: the weights and layers of X3D-S; the two differ in the clips they are meant for, here 16 of 224 pixels."""
    return _x3d("x3d_m")


def _x3d(name: str) -> Chain:
    return _headless(name, (24, 24, 48, 96, 192), create_x3d(input_clip_length=16, input_crop_size=224))


def _headless(name: str, channels: Sequence[int], net: nn.Module) -> Chain:
    return Chain(name, channels, _without_last(net, 1))


def _without_last(net: nn.Module, count: int) -> nn.Module:
    net.blocks = net.blocks[:-count]
    return net


class SlowFast(Backbone):
    """SlowFast with both pathways made from one clip: the slow one sees every `alpha`-th frame, the fast one all.

    Every stage joins the slow map with the fast one, averaged over the `alpha` frames of each slow frame, so the mean
    of a stage is the means of the two pathways, one behind the other. Stage 1 is the stem with its pool. What
    the fast pathway sends into the slow one is not part of a stage.
    """

    def __init__(self, name: str, slow: Sequence[int], fast: Sequence[int], net: nn.Module, alpha: int) -> None:
        super().__init__(
            name, {f"stage{number}": sum(pair) for number, pair in enumerate(zip(slow, fast, strict=True), start=1)}
        )
        self.slow, self.alpha, self.net = tuple(slow), alpha, net

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """The map of every stage, (B, C, T / alpha, H, W) each, of a clip (B, 3, T, H, W)."""
        frames = clip.shape[2]
        if frames % self.alpha:
            raise ConfigError(
                f"backbone '{self.name}': a clip of {frames} frames cannot be shared between the pathways; "
                f"set clip.frames to a multiple of {self.alpha}"
            )
        paths, maps = [clip[:, :, :: self.alpha], clip], {}
        for stage, block, channels in zip(self.stages, self.net.blocks, self.slow, strict=True):
            paths = block(list(paths))
            slow, fast = paths[0][:, :channels], paths[1].unflatten(2, (-1, self.alpha)).mean(dim=3)
            maps[stage] = torch.cat([slow, fast], dim=1)  # (B, slow + fast, T / alpha, H, W)
        return maps


def slowfast_r50(alpha: int = 4) -> SlowFast:
    """SlowFast 8x8 with ResNet-50 pathways; 32 frames become 8 slow and 32 fast ones."""
    net = create_slowfast(
        model_depth=50, slowfast_fusion_conv_kernel_size=(7, 1, 1), slowfast_fusion_conv_stride=(alpha, 1, 1)
    )
    return SlowFast("slowfast_r50", BOTTLENECK, (8, 32, 64, 128, 256), _without_last(net, 2), alpha)


class MultiscaleTransformer(Backbone):
    """MViT with its tokens laid out as maps again and the class token left out.

    Stage 1 is the patch embedding with positions; each further stage ends where the resolution changes next, the last
    with the final norm. The positions belong to `grid` patches; for clips of another size they are interpolated.
    """

    STARTS = (1, 3, 14)  # the blocks that begin stages 3 to 5
    CHANNELS = (96, 192, 384, 768, 768)

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__(name, {f"stage{number}": count for number, count in enumerate(self.CHANNELS, start=1)})
        self.net, self.grid = net, tuple(net.cls_positional_encoding.patch_embed_shape)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """The map of every stage, (B, C, T, H, W) each, of a clip (B, 3, T, H, W)."""
        patches = self.net.patch_embed.patch_model(clip)  # (B, 96, T / 2, H / 4, W / 4)
        tokens, shape = self._placed(patches), list(patches.shape[2:])
        maps = {"stage1": as_map(tokens, shape)}
        for number, block in enumerate(self.net.blocks):
            if number in self.STARTS:
                maps[f"stage{len(maps) + 1}"] = as_map(tokens, shape)
            tokens, shape = block(tokens, shape)
        maps["stage5"] = as_map(self.net.norm_embed(tokens), shape)
        return maps

    def _placed(self, patches: Tensor) -> Tensor:
        """Patches (B, C, T, H, W) as tokens with positions added, the class token first: (B, 1 + T*H*W, C)."""
        places, (time, height, width) = self.net.cls_positional_encoding, self.grid
        when = places.pos_embed_temporal.mT.unflatten(2, (time, 1, 1))  # (1, C, T, 1, 1)
        where = places.pos_embed_spatial.mT.unflatten(2, (1, height, width))  # (1, C, 1, H, W)
        if tuple(patches.shape[2:]) != self.grid:
            when = interpolate(when, (patches.shape[2], 1, 1), mode="trilinear")
            where = interpolate(where, (1, *patches.shape[3:]), mode="trilinear")
        first = (places.cls_token + places.pos_embed_class).expand(len(patches), -1, -1)
        return torch.cat([first, (patches + (when + where)).flatten(2).mT], dim=1)


def as_map(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Tokens (B, 1 + T*H*W, C), the class token first, as a map (B, C, T, H, W)."""
    return tokens[:, 1:].mT.unflatten(2, tuple(shape))


def mvit_base_16x4() -> MultiscaleTransformer:
    """MViT-B with positions for 16 frames of 224 pixels (Fan et al., ICCV 2021)."""
    net = create_multiscale_vision_transformers(
        spatial_size=224,
        temporal_size=16,
        embed_dim_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        atten_head_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kvq_kernel=[3, 3, 3],
        head=None,
    )
    return MultiscaleTransformer("mvit_base_16x4", net)
