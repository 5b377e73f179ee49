"""Random calls of every op with right and wrong shapes, dtypes, strides, sizes and values, in one process.

    python tests/fuzz.py [--calls 100000] [--seed 0]

A call may succeed or raise ValueError or TypeError. Anything else, a crash or a sanitizer's report included,
ends the run; the seed of the failing call is printed, and --seed with --calls 1 repeats it.
"""

from __future__ import annotations

import argparse
import collections
import time
import traceback

import numpy as np
from fastnn import ops

DTYPES = ["f4", "f8", "f4", "f8", "f4", ">f4", "f2", "i4", "i8", "u1", "c8", "O", "?", "U3"]
NUMBERS = [
    0,
    1,
    1,
    1,
    2,
    2,
    3,
    4,
    5,
    7,
    -1,
    2**31 - 1,
    2**31,
    2**62,
    2**64,
    -(2**63),
    1.5,
    None,
    "3",
    True,
    float("nan"),
]
VALUES = [0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e38, -1e-45]


class Fuzzer:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def chance(self, probability):
        return self.rng.random() < probability

    def shape(self, rank=None):
        rank = self.rng.integers(0, 6) if rank is None or self.chance(0.05) else rank
        return tuple(int(d) for d in self.rng.integers(0 if self.chance(0.1) else 1, 10, rank))

    def array(self, shape, dtype="f4"):
        """An array of about that shape and dtype, in any memory layout."""
        if self.chance(0.03):
            shape = self.shape()
        if self.chance(0.03):
            dtype = self.pick(DTYPES)
        if self.chance(0.01):
            return self.pick([None, 3, 1.5, "x", [1.0, 2.0], np.float32(1), (1,), object()])
        array = np.asarray(self.rng.integers(-3, 4, shape)).astype(dtype)
        if array.size and array.dtype.kind == "f" and self.chance(0.1):
            array.flat[self.rng.integers(array.size)] = self.pick(VALUES)
        layout = self.rng.integers(8)
        if layout == 0:
            return np.asfortranarray(array)
        if layout == 1 and array.ndim:
            return array[::-1]
        if layout == 2 and array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
        if layout == 3 and array.ndim and array.shape[0]:
            return np.broadcast_to(array[:1], array.shape)
        if layout == 4 and array.dtype.kind == "f":
            raw = np.ndarray(array.shape, array.dtype, bytearray(array.nbytes + 1), offset=1)
            raw[...] = array
            return raw
        return array

    def number(self, good=(1, 2, 3)):
        return self.pick(NUMBERS) if self.chance(0.05) else int(self.pick(good))

    def pair(self, good=(1, 2, 3)):
        return (
            self.number(good)
            if self.chance(0.5)
            else tuple(self.number(good) for _ in range(3 if self.chance(0.02) else 2))
        )

    def padding(self):
        if self.chance(0.03):
            return self.pick([None, "full", ((1, 1), 2), ((1,), (1,)), [[0, 1], [1, 0]], 2.5])
        return self.pick(["valid", "same", self.pair((0, 1, 2)), (self.pair((0, 1)), self.pair((0, 1)))])

    def out(self, shape, dtype):
        return None if self.chance(0.8) else self.array(shape, dtype)

    def guess(self, kernel_shape, x_shape, window, stride=1, dilation=1, padding="valid", precision=None):
        """The output's shape, when it is simple enough; else any."""
        try:
            probe = ops.conv2d if kernel_shape else ops.avg_pool2d
            x = np.zeros(x_shape, "f4")
            if kernel_shape:
                return probe(
                    x, np.zeros(kernel_shape, "f4"), stride=stride, dilation=dilation, padding=padding
                ).shape
            return probe(x, window, stride, padding).shape
        except (ValueError, TypeError):
            return self.shape(4)

    # ---- One method an op family: draws arguments and calls.

    def gemm(self, dtype):
        m, n, k = (int(d) for d in self.rng.integers(0, 40, 3))
        ta, tb = self.chance(0.5), self.chance(0.5)
        a, b = self.array((k, m) if ta else (m, k), dtype), self.array((n, k) if tb else (k, n), dtype)
        c = self.array((m, n), dtype) if self.chance(0.3) else None
        bias = self.array((n,), dtype) if self.chance(0.3) else None
        beta = self.pick([0.0, 0.0, 1.0, np.nan])
        y = ops.gemm(
            a,
            b,
            c,
            transpose_a=ta,
            transpose_b=tb,
            beta=beta,
            bias=bias,
            relu=self.chance(0.5),
            out=self.out((m, n), dtype),
        )
        ops.gemm_backward(self.array(y.shape, dtype), a, b, transpose_a=ta, transpose_b=tb)

    def convolution(self):
        """Shapes of x and w, and options; one in ten is for Winograd's algorithm."""
        if self.chance(0.1):
            size = self.rng.integers([1, 14, 14, 16], [4, 20, 20, 40])
            x_shape, k = tuple(map(int, size)), int(self.rng.integers(16, 70))
            return x_shape, (3, 3, x_shape[3], k), {"padding": self.padding(), "precision": "winograd"}
        x_shape, k = self.shape(4), int(self.rng.integers(1, 40))
        channels = x_shape[3] if len(x_shape) == 4 else 1
        options = {"stride": self.pair(), "dilation": self.pair(), "padding": self.padding()}
        if self.chance(0.05):
            options["precision"] = self.pick(["winograd", "tf32", "", None])
        return x_shape, (*(int(d) for d in self.rng.integers(1, 4, 2)), channels, k), options

    def conv2d(self, dtype):
        x_shape, w_shape, options = self.convolution()
        k = w_shape[3]
        which = self.rng.integers(3)
        if which == 0:
            b = self.array((k,), dtype) if self.chance(0.5) else None
            ops.conv2d(
                self.array(x_shape, dtype), self.array(w_shape, dtype), b, relu=self.chance(0.5), **options
            )
            return
        dy = self.array(self.guess(w_shape, x_shape, None, **options), dtype)
        if which == 1:
            ops.conv2d_backward_x(dy, self.array(w_shape, dtype), self.wrong(x_shape), **options)
        else:
            ops.conv2d_backward_w(dy, self.array(x_shape, dtype), self.wrong(w_shape), **options)

    def wrong(self, shape):
        if self.chance(0.05):
            return self.pick(
                [None, 3, shape[:2], [*shape], (2**40, 2**20, 2**20, 3), (*shape[:3], -1), (1.5, 2, 3, 4)]
            )
        return shape

    def pool2d(self, dtype):
        x_shape, window = self.shape(4), self.pair()
        stride, padding = self.pick([None, self.pair()]), self.padding()
        which = self.rng.integers(4)
        if which == 0:
            ops.max_pool2d(self.array(x_shape, dtype), window, stride, padding)
        elif which == 1:
            ops.avg_pool2d(self.array(x_shape, dtype), window, stride, padding)
        else:
            shape = self.guess(None, x_shape, window, stride, 1, padding)
            dy = self.array(shape, dtype)
            if which == 2:
                ops.avg_pool2d_backward(dy, self.wrong(x_shape), window, stride, padding)
            else:
                argmax = self.array(shape, "i4")  # of any values: garbage must not be written by
                ops.max_pool2d_backward(dy, argmax, self.wrong(x_shape), window, stride, padding)

    def conv_pool(self, dtype):
        x_shape, w_shape, conv = self.convolution()
        k = w_shape[3]
        window, pool_stride, pool_padding = self.pair(), self.pick([None, self.pair()]), self.padding()
        options = {**conv, "window": window, "pool_stride": pool_stride, "pool_padding": pool_padding}
        x, w = self.array(x_shape, dtype), self.array(w_shape, dtype)
        which = self.rng.integers(3)
        if which == 0:
            b = self.array((k,), dtype) if self.chance(0.5) else None
            ops.conv2d_max_pool2d(x, w, b, relu=self.chance(0.5), **options)
            return
        between = self.guess(w_shape, x_shape, None, **conv)
        shape = self.guess(None, between, window, pool_stride, 1, pool_padding)
        dy, argmax = self.array(shape, dtype), self.array(shape, "u1")  # of any values, as above
        if which == 1:
            ops.conv2d_max_pool2d_backward_x(dy, argmax, w, self.wrong(x_shape), **options)
        else:
            ops.conv2d_max_pool2d_backward_w(dy, argmax, x, self.wrong(w_shape), **options)

    def activation(self, dtype):
        name, shape = self.pick(["relu", "sigmoid", "tanh", "softmax"]), self.shape()
        getattr(ops, name)(self.array(shape, dtype))
        getattr(ops, name + "_backward")(self.array(shape, dtype), self.array(shape, dtype))
        ops.relu(self.array(shape, dtype), out=self.out(shape, dtype))
        ops.bias_backward(self.array(shape, dtype))
        keep = self.array(shape, self.pick(["?", "u1"]))
        getattr(ops, self.pick(["dropout", "dropout_backward"]))(
            self.array(shape, dtype), keep, self.pick([0.0, 0.5, 1.0])
        )

    def rescale(self, dtype):
        shape = self.shape()
        rows = None
        if self.chance(0.7):
            high = (shape[0] if shape else 1) + (1 if self.chance(0.2) else 0)
            rows = self.rng.integers(-1 if self.chance(0.2) else 0, max(high, 1), self.rng.integers(0, 40))
            rows = rows.astype(self.pick(["i4", "i8", "u1", ">i4", "f4"]))
        x = self.array(shape, self.pick([dtype, "u1", "i4"]))
        ops.rescale(
            x, 0.5, self.pick([0, -1.0, np.nan]), rows=rows, dtype=self.pick([None, "float32", "float64"])
        )

    def resample(self, dtype):
        shape, taps, outputs = self.shape(), *(int(d) for d in self.rng.integers(0, 9, 2))
        axis = int(self.rng.integers(0, len(shape) + 1))
        length = shape[axis] if axis < len(shape) else 1
        low, high = -1 if self.chance(0.1) else 0, length + (1 if self.chance(0.1) else 0)
        index = self.rng.integers(low, max(high, low + 1), (taps, shape[0] if shape else 1, outputs))
        index = index.astype(self.pick(["i4", "i4", "i8", ">i4", "f4"]))
        weights = self.array(self.wrong(index.shape), dtype) if self.chance(0.7) else None
        if self.chance(0.5):
            offset = self.array(self.wrong(index.shape[1:]), dtype) if self.chance(0.5) else None
            ops.resample(self.array(shape, dtype), axis, index, weights, offset)
        else:
            dy = self.array((*shape[:axis], outputs, *shape[axis + 1 :]), dtype)
            ops.resample_backward(dy, axis, index, shape, weights)

    def loss(self, dtype):
        rows, classes = (int(d) for d in self.rng.integers(0 if self.chance(0.1) else 1, 30, 2))
        x = self.array((rows, classes), dtype)
        target = self.array((rows, classes), dtype)
        if self.chance(0.6):
            high = classes + (1 if self.chance(0.2) else 0)
            target = self.rng.integers(-1 if self.chance(0.2) else 0, max(high, 1), rows).astype(
                self.pick(["i4", "i8", "u1", ">i4"])
            )
        _, y = ops.softmax_cross_entropy(x, target)
        ops.softmax_cross_entropy_backward(self.array((rows,), dtype), y, target)
        ops.mean_squared_error(x, self.array((rows, classes), dtype))
        ops.mean_squared_error_backward(self.array((rows,), dtype), x, self.array((rows, classes), dtype))

    def batch_norm(self, dtype):
        shape = self.shape()
        channels = shape[-1:] or (1,)
        x, gamma, beta = self.array(shape, dtype), self.array(channels, dtype), self.array(channels, dtype)
        epsilon = self.pick([1e-3, 1e-3, 0, -1, np.nan])
        _, mean, var = ops.batch_norm(x, gamma, beta, epsilon=epsilon)
        ops.batch_norm_backward(self.array(shape, dtype), x, gamma, mean, var, epsilon=epsilon)
        ops.batch_norm_inference(
            x, gamma, beta, self.array(channels, dtype), self.array(channels, dtype), epsilon=epsilon
        )

    def optimizer(self, dtype):
        shapes = [self.shape() for _ in range(self.rng.integers(0, 4))]

        def slots():
            arrays = [self.array(shape, dtype) for shape in shapes]
            return self.pick([arrays[:-1], None, 3, tuple(arrays)]) if self.chance(0.1) else arrays

        if self.chance(0.5):
            ops.sgd_step(
                slots(),
                slots(),
                slots(),
                learning_rate=0.1,
                momentum=self.pick([0.0, 0.9]),
                nesterov=self.chance(0.5),
            )
        else:
            ops.adam_step(slots(), slots(), slots(), slots(), step=self.number(), learning_rate=0.1)

    def call(self):
        method = self.pick(
            [
                self.gemm,
                self.conv2d,
                self.conv2d,
                self.pool2d,
                self.conv_pool,
                self.activation,
                self.rescale,
                self.resample,
                self.loss,
                self.batch_norm,
                self.optimizer,
            ]
        )
        method(self.pick(["f4", "f8"]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first call; each further one adds 1")
    args = parser.parse_args()
    outcomes = collections.Counter()
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        for seed in range(args.seed, args.seed + args.calls):
            try:
                Fuzzer(seed).call()
                outcomes["no error"] += 1
            except (ValueError, TypeError) as error:
                outcomes[type(error).__name__] += 1
            except BaseException:
                print(f"call with seed {seed}:", flush=True)
                traceback.print_exc()
                return 1
    print(f"{args.calls} random calls in {time.perf_counter() - start:.0f} s: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
