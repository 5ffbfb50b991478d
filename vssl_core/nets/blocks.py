"""PyTorchVideo's blocks and builders, imported once what they need has been mended."""

from __future__ import annotations

from vssl_core.compat import mend

mend()

from pytorchvideo.layers.convolutions import Conv2plus1d  # noqa: E402
from pytorchvideo.models.csn import create_csn  # noqa: E402
from pytorchvideo.models.net import Net  # noqa: E402
from pytorchvideo.models.r2plus1d import create_r2plus1d  # noqa: E402
from pytorchvideo.models.resnet import ResBlock, ResStage, create_resnet  # noqa: E402
from pytorchvideo.models.slowfast import create_slowfast  # noqa: E402
from pytorchvideo.models.stem import ResNetBasicStem  # noqa: E402
from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers  # noqa: E402
from pytorchvideo.models.x3d import create_x3d  # noqa: E402

__all__ = [
    "Conv2plus1d",
    "Net",
    "ResBlock",
    "ResNetBasicStem",
    "ResStage",
    "create_csn",
    "create_multiscale_vision_transformers",
    "create_r2plus1d",
    "create_resnet",
    "create_slowfast",
    "create_x3d",
]
