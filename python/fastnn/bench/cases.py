"""Cases: a string such as `conv2d/n32h15w15c32k64r3s3` names a problem, holds its size, and is what repeats it.

    family/sizes[:precision]

A size is a letter and a number: n images, h by w pixels, c channels, k filters or the inner dimension of a product, r by s
taps, u stride, p padding. What has its default value is left out, so that a problem has one name. A family knows its
inputs, what comes out of the reference, and its work: floating-point operations, and bytes if every operand is read
and every result written once. A new family is one class in kernels.py or networks.py, and a method of that name for each
library that has it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from . import kernels, networks
from .family import Case, Family

FAMILIES: dict[str, Family] = {
    family.name: family()
    for family in (
        kernels.Gemm,
        kernels.Conv2d,
        kernels.ConvPool2d,
        kernels.MaxPool2d,
        kernels.AvgPool2d,
        kernels.Relu,
        kernels.Sigmoid,
        kernels.Tanh,
        kernels.Softmax,
        kernels.Rescale,
        kernels.SoftmaxCrossEntropy,
        kernels.BatchNorm,
        networks.AdamStep,
        networks.Inference,
        networks.TrainStep,
    )
}


def parse(text: str) -> Case:
    """The case of this name; ValueError where it is none, or not the one way to write it."""
    family_name, _, rest = text.partition("/")
    if family_name not in FAMILIES:
        raise ValueError(f"case {text!r}: there is no family {family_name!r}, only {', '.join(FAMILIES)}")
    family = FAMILIES[family_name]
    body, colon, precision = rest.partition(":")
    found = family.pattern.fullmatch(body)
    if found is None:
        raise ValueError(f"case {text!r} does not read like {family.name}/{family.template}")
    given = {name: value for name, value in found.groupdict().items() if value is not None}
    sizes = {
        **family.defaults,
        **{name: int(value) if value.isdigit() else value for name, value in given.items()},
    }
    for name, value in sizes.items():
        if name in family.follows and name not in given:
            sizes[name] = sizes[family.follows[name]]
        elif value == 0 and name != "p":
            raise ValueError(f"case {text!r}: {name} must be at least 1")
    if colon and precision not in family.precisions:
        raise ValueError(
            f"case {text!r}: {family.name} knows the precisions {', '.join(family.precisions)}, not {precision!r}"
        )
    case = Case(family, sizes, precision or "float32")
    if str(case) != text:
        raise ValueError(f"case {text!r} is written {str(case)!r}")
    return case


def _layers(n: int) -> list[str]:
    """The tutorial network's layers, first to last."""
    return [
        f"conv2d/n{n}h32w32c3k32r3s3",
        f"conv2d/n{n}h15w15c32k64r3s3",
        f"conv2d/n{n}h6w6c64k64r3s3",
        f"conv2d_max_pool2d/n{n}h32w32c3k32r3s3q2",
        f"conv2d_max_pool2d/n{n}h15w15c32k64r3s3q2",
        f"max_pool2d/n{n}h30w30c32r2",
        f"max_pool2d/n{n}h13w13c64r2",
        f"relu/n{n * 900}c32",
        f"gemm/m{n}n64k1024",
        f"gemm/m{n}n1024k64-nt",
        f"gemm/m1024n64k{n}-tn",
        f"gemm/m{n}n10k64",
        f"softmax_cross_entropy/n{n}c10",
    ]


SUITES: dict[str, list[str]] = {
    "training": ["train_step/tutorial-n32", "train_step/tutorial-n128"],
    "inference": [f"inference/tutorial-n{n}" for n in (1, 32, 256)],
    "layers-1": _layers(1),
    "layers-32": _layers(32),
    "layers-128": _layers(128),
    "resnet": [
        "conv2d/n32h32w32c64k64r3s3p1",
        "conv2d/n32h16w16c128k128r3s3p1",
        "conv2d/n32h8w8c256k256r3s3p1",
        "conv2d/n32h16w16c64k256r1s1",
        "conv2d/n32h32w32c64k128r3s3p1u2",
    ],
    "gemm": [f"gemm/m{n}n{n}k{n}" for n in (256, 512, 1024, 2048)],
    "skinny": [
        "gemm/m28800n32k27",
        "gemm/m5408n64k288",
        "gemm/m512n64k576",
        "gemm/m1n4096k1024",
        "gemm/m8n4096k1024",
        "gemm/m32n4096k1024",
        "gemm/m4096n8k1024",
        "gemm/m32n1k12544",
        "gemm/m256n256k16384-tn",
    ],
    "pool": [
        "conv2d_max_pool2d/n32h32w32c3k32r3s3p1q2",
        "conv2d_max_pool2d/n32h16w16c32k64r3s3p1q2",
        "max_pool2d/n32h112w112c64r3u2",
        "avg_pool2d/n32h30w30c32r2",
        "avg_pool2d/n32h8w8c256r8",
    ],
    "activation": [
        "relu/n4096c1024",
        "sigmoid/n1024c1024",
        "tanh/n1024c1024",
        "softmax/n1024c1024",
        "softmax/n32c10",
    ],
    "batch": ["rescale/n32h32w32c3", "rescale/n128h32w32c3"],
    "norm": ["batch_norm/n32h32w32c64"],
    "optimizer": ["adam_step/tutorial"],
    "precision": [  # on a GPU's tensor cores
        f"{case}:{precision}"
        for precision in ("tf32", "bfloat16")
        for case in (
            "gemm/m1024n1024k1024",
            "gemm/m4096n4096k4096",
            "conv2d/n128h15w15c32k64r3s3",
            "conv2d/n32h32w32c64k64r3s3p1",
            "conv2d/n32h8w8c256k256r3s3p1",
        )
    ],
}


def select(names: Iterable[str]) -> list[Case]:
    """The cases that names mean: a suite, a case, a pattern over the suites' cases such as `conv2d/*`, or `all` of float32."""
    every = list(dict.fromkeys(name for suite in SUITES.values() for name in suite))
    chosen: dict[str, Case] = {}
    for name in names:
        if name == "all":
            found = [case for case in every if ":" not in case]
        elif name in SUITES:
            found = SUITES[name]
        elif any(c in name for c in "*?"):
            found = fnmatch.filter(every, name)
        elif "/" in name:
            found = [name]
        else:
            found = []
        if not found:
            raise ValueError(
                f"{name!r} is neither a suite ({', '.join(SUITES)}), nor all, a case, or a pattern that fits one"
            )
        chosen.update((case, parse(case)) for case in found)
    return list(chosen.values())
