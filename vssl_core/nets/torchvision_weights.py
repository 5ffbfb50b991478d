"""torchvision's video weights, renamed to fit the nets of the same layout here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vssl_core.errors import CheckpointError
from vssl_core.nets.stages import Backbone

Rules = tuple[tuple[str, str], ...]  # (a pattern for the start of torchvision's name, what stands in its place here)

_BLOCK = r"layer(\d)\.(\d+)\."
_OURS = r"net.blocks.\1.res_blocks.\2."
_NORMS: Rules = (
    (_BLOCK + r"conv1\.1\.", _OURS + "branch2.1."),
    (_BLOCK + r"conv2\.1\.", _OURS + "branch2.4."),
    (_BLOCK + r"downsample\.0\.", _OURS + "branch1_conv."),
    (_BLOCK + r"downsample\.1\.", _OURS + "branch1_norm."),
)
WHOLE: Rules = (
    (r"stem\.0\.", "net.blocks.0.conv."),
    (r"stem\.1\.", "net.blocks.0.norm."),
    (_BLOCK + r"conv1\.0\.(?=weight)", _OURS + "branch2.0."),
    (_BLOCK + r"conv2\.0\.(?=weight)", _OURS + "branch2.3."),
    *_NORMS,
)
FACTORED: Rules = (
    (r"stem\.0\.", "net.blocks.0.conv.conv_xy."),
    (r"stem\.1\.", "net.blocks.0.conv.norm."),
    (r"stem\.3\.", "net.blocks.0.conv.conv_t."),
    (r"stem\.4\.", "net.blocks.0.norm."),
    *(
        (_BLOCK + rf"conv{number}\.0\.{theirs}\.", _OURS + f"branch2.{place}.{ours}.")
        for number, place in ((1, 0), (2, 3))
        for theirs, ours in ((0, "conv_xy"), (1, "norm"), (3, "conv_t"))
    ),
    *_NORMS,
)
#: The places here of the entries of torchvision's flat S3D, pools included: the stem is a stage of its own.
_PLACES = ["0", *(f"{stage}.{entry}" for stage, length in ((1, 3), (2, 3), (3, 6), (4, 3)) for entry in range(length))]
SEPARATED: Rules = tuple(
    rule
    for entry, place in enumerate(_PLACES)
    for rule in (
        (rf"features\.{entry}\.branch(\d)\.", rf"net.blocks.{place}.branches.\1."),
        (rf"features\.{entry}\.", f"net.blocks.{place}."),
    )
)
RULES: Mapping[str, Rules] = {"r3d_18": WHOLE, "r2plus1d_18": FACTORED, "s3d": SEPARATED}
CLASSIFIERS = ("fc.", "classifier.")


def load_torchvision(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> None:
    """Load the state_dict of torchvision's net of the same name into `backbone`; its classifier is left out.

    `CheckpointError` where there is no such net in torchvision, and where names or shapes do not fit.
    """
    if backbone.name not in RULES:
        raise CheckpointError(
            f"torchvision has no weights in the layout of '{backbone.name}'; it has them for {', '.join(RULES)}"
        )
    renamed = {
        _rename(name, RULES[backbone.name]): tensor
        for name, tensor in state_dict.items()
        if not name.startswith(CLASSIFIERS)
    }
    try:
        backbone.load_state_dict(renamed)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights given are not those of torchvision's {backbone.name}: {' '.join(str(error).split())}"
        ) from error


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        renamed, hits = re.subn("^" + pattern, replacement, name)
        if hits:
            return renamed
    return name
