"""Seeds of torch's generators for one moment of a run, so that no moment depends on what was drawn before it."""

from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np
import torch


def reseed(seed: int, stream: str) -> None:
    """Seed torch's generators from the run's seed and the name of a moment; a few microseconds on a CPU."""
    number = int.from_bytes(blake2b(f"{seed}/{stream}".encode(), digest_size=6).digest(), "little")
    # Torch.manual_seed asks every kind of device there is, a hundred times slower
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def seed_process(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators of a process that is ours alone."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
