"""Every random number comes from a stateless stream, named by a seed and a few integers that say what for.

No generator lives longer than the call that needs it, so a run is resumed from its seed and its step alone.
The streams of a model with seed s: (s, 0, i) the initial weights of layer i, (s, 1, t) the order of the epoch
that begins at step t, (s, 2, t) dropout and augmentation of step t.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

INITIALIZATION, SHUFFLE, TRAINING = 0, 1, 2

_lock = threading.Lock()
_seed: int | None = None  # None until set_seed: seeds then come from the operating system
_drawn = 0  # how many seeds were given out since set_seed


def set_seed(seed: int) -> None:
    """Fix initialisation, shuffling, dropout and augmentation of all models made from here on.

    seed: an integer from 0 up. The k-th model made after set_seed(n) is the same in every process.
    """
    global _seed, _drawn
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"set_seed: seed must be an integer, not {type(seed).__name__}") from None
    if seed < 0:
        raise ValueError(f"set_seed: seed must not be negative, got {seed}")
    with _lock:
        _seed, _drawn = seed, 0


def next_seed() -> int:
    """A seed below 2**53 for one new model or layer: the next of set_seed's sequence, else an arbitrary one."""
    global _drawn
    with _lock:
        if _seed is None:
            source = np.random.SeedSequence()
        else:
            source = np.random.SeedSequence(_seed, spawn_key=(_drawn,))
            _drawn += 1
    return int(source.generate_state(1, np.uint64)[0]) >> 11  # every JSON reader holds 53 bits exactly


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one stream, at its beginning."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


def chances(rng: np.random.Generator, shape: Sequence[int], probability: float) -> npt.NDArray[np.bool_]:
    """True with this probability, to 2**-17: sixteen raw bits of the stream for each, which is all that drawing costs."""
    size = math.prod(shape)
    bits = rng.bit_generator.random_raw(-(-size // 4)).view(np.uint16)[:size]
    return (bits < round(probability * 2**16)).reshape(shape)
