"""What a case is made of: its sizes, its family, the work it must do, and what must come out of it.

Inputs are drawn from the case's name, so that every process has the same ones. Nothing but NumPy is needed to read this
module and those of the families.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .._typing import Array

PRECISIONS = ("float32", "tf32", "bfloat16")
# Of a factor, before the multiplication. A GPU that is given float32 as TF32 drops the last 13 bits without rounding.
_ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-10, "bfloat16": 2.0**-8}
EPS = float(np.finfo(np.float32).eps)

Inputs = dict[str, Any]  # names to arrays, or to lists of arrays


class Work(NamedTuple):
    """What a pass must do at least: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


class Expected(NamedTuple):
    """A result in float64, and how far each element may be off."""

    value: Array
    bound: Array


@dataclass(frozen=True)
class Case:
    """A problem: a family, its sizes, and the precision of the factors of its products."""

    family: Family
    sizes: Mapping[str, Any]
    precision: str = "float32"

    def __getitem__(self, name: str) -> Any:
        return self.sizes[name]

    def __str__(self) -> str:
        suffix = "" if self.precision == "float32" else f":{self.precision}"
        return f"{self.family.name}/{self.family.format(self.sizes)}{suffix}"

    def inputs(self) -> Inputs:
        """The arrays that the case starts from, the same for all precisions and in every process."""
        name = f"{self.family.name}/{self.family.format(self.sizes)}"
        return self.family.inputs(self, np.random.default_rng(zlib.crc32(name.encode())))

    @property
    def passes(self) -> tuple[str, ...]:
        return self.family.passes

    def work(self, which: str) -> Work:
        """What the pass must do at least."""
        return self.family.work(self, which)

    def expected(self, which: str, inputs: Inputs) -> list[Expected]:
        """The pass's results by the reference."""
        return self.family.expected(self, which, inputs)


class Family:
    """One kind of problem.

    template: the sizes as they are written, `{n}` a number, `{x:a|b}` one of these words; what stands in brackets is left
    out where it has its default. follows: sizes whose default is another size.
    """

    name: ClassVar[str]
    template: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    follows: ClassVar[Mapping[str, str]] = {}
    passes: ClassVar[tuple[str, ...]] = ("forward", "backward")
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    checked_calls: ClassVar[int] = 1  # results of so many calls in a row are compared
    least_calls: ClassVar[int] = 1  # in a turn
    whole: ClassVar[bool] = False  # on a GPU, launches from the host are part of its time
    items: ClassVar[str] = ""  # what a rate counts, where it is not operations or bytes

    _FIELD: ClassVar[re.Pattern[str]] = re.compile(r"\{(\w)(?::([^}]*))?\}")

    @property
    def pattern(self) -> re.Pattern[str]:
        text = self.template.replace("[", "(?:").replace("]", ")?")
        return re.compile(self._FIELD.sub(lambda m: f"(?P<{m[1]}>{m[2] or '[0-9]+'})", text))

    def format(self, sizes: Mapping[str, Any]) -> str:
        """The sizes as the template writes them."""

        def optional(part: re.Match[str]) -> str:
            fields = self._FIELD.findall(part[1])
            plain = all(
                sizes[f] == sizes.get(self.follows.get(f, ""), self.defaults.get(f)) for f, _ in fields
            )
            return "" if plain else part[1]

        text = re.sub(r"\[([^\]]*)\]", optional, self.template)
        return self._FIELD.sub(lambda m: str(sizes[m[1]]), text)

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        raise NotImplementedError

    def work(self, case: Case, which: str) -> Work:
        raise NotImplementedError

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        raise NotImplementedError


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def sum_of_products(value: Array, squares: Array, terms: int, precision: str = "float32") -> Expected:
    """A sum of `terms` products of random factors; squares: the same sum over the squares of the factors.

    Rounding errors of such a sum add up like a random walk (Higham and Mary 2019), so that its standard deviation and the root
    of its length bound the error of any order of summation, while a term left out shows.
    """
    spread = 8 * (EPS * (np.sqrt(terms) + 4) + _ROUNDOFF[precision])
    return Expected(value, spread * np.sqrt(squares) + float(np.finfo(np.float32).tiny))


def relative(value: Array, tolerance: float) -> Expected:
    """A result that is right to a fraction of its largest element."""
    value = np.asarray(value, np.float64)
    return Expected(value, np.full(value.shape, tolerance * max(float(np.abs(value).max(initial=0)), 1e-30)))


def floats(*shapes: Sequence[int]) -> float:
    return 4.0 * sum(float(np.prod(shape)) for shape in shapes)
