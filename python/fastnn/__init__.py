"""fastnn: hand-written neural-network kernels, each forward with its backward, under a thin Keras-like layer API.

ops                 every kernel as a function on arrays
reference           the same names in plain NumPy
gradcheck           gradient verification, yours included
layers, models ...  the layer API: Keras's names, defaults and semantics
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._backend import get_num_threads, set_num_threads
from ._random import set_seed

if TYPE_CHECKING:
    from types import ModuleType

    from . import (
        callbacks,
        datasets,
        gradcheck,
        initializers,
        layers,
        losses,
        metrics,
        models,
        ops,
        optimizers,
        plots,
        reference,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "callbacks",
    "datasets",
    "get_num_threads",
    "gradcheck",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "optimizers",
    "plots",
    "reference",
    "set_num_threads",
    "set_seed",
]


def __getattr__(name: str) -> ModuleType:
    """Submodules load at their first use, so that importing fastnn takes little longer than importing NumPy."""
    if name in __all__:
        return importlib.import_module(f"fastnn.{name}")
    raise AttributeError(f"module 'fastnn' has no attribute {name!r}")
