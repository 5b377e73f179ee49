"""What csrc/bindings.cpp and csrc/bind_shapes.cpp define. Every array argument is C-contiguous; results are written in place."""

from collections.abc import Callable, Sequence
from typing import Any

from ._typing import Array, Shape

_Pair = tuple[int, int]
_Sides = tuple[int, int, int, int] | None  # (top, bottom, left, right); None is "same"

isa: str
isas: list[str]

def set_num_threads(count: int) -> None: ...
def get_num_threads() -> int: ...

class Tape:
    """Kernels that were recorded, with their arrays; launch calls them again, in order."""

    def __init__(self) -> None: ...
    def record(self, function: Callable[..., None], *arguments: Any) -> None: ...
    def add_input(self, array: Any) -> bool: ...
    def launch(self, *inputs: Any) -> None: ...

# Up to `count` steps: each plays the first tape, keeps the results, a row for each step, then plays the other tapes. Where there
# are any, a step whose first result has no finite sum is the last, and ends there. All tapes have the same inputs; each is given
# an array like it, or one with a row like it for each step. Gives the number of steps done.
def launch_steps(
    count: int, tapes: list[Tape], inputs: list[Any], results: list[Array], kept: list[Array]
) -> int: ...

class GemmShape:
    def __init__(
        self, a: Sequence[int], b: Sequence[int], transpose_a: bool, transpose_b: bool, precision: str
    ) -> None: ...
    @property
    def y(self) -> Shape: ...

class Conv2dShape:
    def __init__(
        self,
        x: Sequence[int],
        w: Sequence[int],
        stride: _Pair,
        dilation: _Pair,
        padding: _Sides,
        precision: str,
    ) -> None: ...
    @property
    def y(self) -> Shape: ...

class Pool2dShape:
    def __init__(self, x: Sequence[int], window: _Pair, stride: _Pair, padding: _Sides) -> None: ...
    @property
    def y(self) -> Shape: ...

class ConvPoolShape:
    def __init__(self, conv: Conv2dShape, window: _Pair, stride: _Pair, padding: _Sides) -> None: ...
    @property
    def y(self) -> Shape: ...

# Elements of workspace that an op wants for elements of `itemsize` bytes.
def gemm_workspace(shape: GemmShape, itemsize: int) -> int: ...
def conv2d_forward_workspace(shape: Conv2dShape, itemsize: int) -> int: ...
def conv2d_backward_x_workspace(shape: Conv2dShape, itemsize: int) -> int: ...
def conv2d_backward_w_workspace(shape: Conv2dShape, itemsize: int) -> int: ...
def conv2d_max_pool2d_forward_workspace(shape: ConvPoolShape, itemsize: int) -> int: ...
def conv2d_max_pool2d_backward_x_workspace(shape: ConvPoolShape, itemsize: int) -> int: ...
def conv2d_max_pool2d_backward_w_workspace(shape: ConvPoolShape, itemsize: int) -> int: ...
def channel_workspace(rows: int, cols: int, itemsize: int) -> int: ...
def gemm(
    shape: GemmShape,
    a: Array,
    b: Array,
    c: Array | None,
    bias: Array | None,
    alpha: float,
    beta: float,
    relu: bool,
    y: Array,
    workspace: Array,
    stream: int,
) -> None: ...
def conv2d_forward(
    shape: Conv2dShape,
    x: Array,
    w: Array,
    b: Array | None,
    relu: bool,
    y: Array,
    workspace: Array,
    stream: int,
) -> None: ...
def conv2d_backward_x(
    shape: Conv2dShape, dy: Array, w: Array, dx: Array, workspace: Array, stream: int
) -> None: ...
def conv2d_backward_w(
    shape: Conv2dShape, dy: Array, x: Array, dw: Array, workspace: Array, stream: int
) -> None: ...
def max_pool2d_forward(shape: Pool2dShape, x: Array, y: Array, argmax: Array, stream: int) -> None: ...
def max_pool2d_backward(shape: Pool2dShape, dy: Array, argmax: Array, dx: Array, stream: int) -> None: ...
def conv2d_max_pool2d_forward(
    shape: ConvPoolShape,
    x: Array,
    w: Array,
    b: Array | None,
    relu: bool,
    y: Array,
    argmax: Array,
    workspace: Array,
    stream: int,
) -> None: ...
def conv2d_max_pool2d_backward_x(
    shape: ConvPoolShape, dy: Array, argmax: Array, w: Array, dx: Array, workspace: Array, stream: int
) -> None: ...
def conv2d_max_pool2d_backward_w(
    shape: ConvPoolShape,
    dy: Array,
    argmax: Array,
    x: Array,
    dw: Array,
    db: Array | None,
    workspace: Array,
    stream: int,
) -> None: ...
def avg_pool2d_forward(shape: Pool2dShape, x: Array, y: Array, stream: int) -> None: ...
def avg_pool2d_backward(shape: Pool2dShape, dy: Array, dx: Array, stream: int) -> None: ...
def relu_forward(x: Array, y: Array, stream: int) -> None: ...
def relu_backward(dy: Array, y: Array, dx: Array, stream: int) -> None: ...
def sigmoid_forward(x: Array, y: Array, stream: int) -> None: ...
def sigmoid_backward(dy: Array, y: Array, dx: Array, stream: int) -> None: ...
def tanh_forward(x: Array, y: Array, stream: int) -> None: ...
def tanh_backward(dy: Array, y: Array, dx: Array, stream: int) -> None: ...
def dropout(x: Array, keep: Array, scale: float, y: Array, stream: int) -> None: ...
def dropout_backward(dy: Array, keep: Array, scale: float, dx: Array, stream: int) -> None: ...
def rescale(x: Array, rows: Array | None, scale: float, offset: float, y: Array, stream: int) -> None: ...
def resample(
    x: Array,
    axis: int,
    taps: int,
    index: Array,
    weights: Array | None,
    offset: Array | None,
    y: Array,
    stream: int,
) -> None: ...
def resample_backward(
    dy: Array, axis: int, taps: int, index: Array, weights: Array | None, dx: Array, stream: int
) -> None: ...
def softmax_forward(x: Array, y: Array, stream: int) -> None: ...
def softmax_backward(dy: Array, y: Array, dx: Array, stream: int) -> None: ...
def sparse_cross_entropy_forward(x: Array, labels: Array, loss: Array, y: Array, stream: int) -> None: ...
def sparse_cross_entropy_backward(dloss: Array, y: Array, labels: Array, dx: Array, stream: int) -> None: ...
def cross_entropy_forward(x: Array, target: Array, loss: Array, y: Array, stream: int) -> None: ...
def cross_entropy_backward(dloss: Array, y: Array, target: Array, dx: Array, stream: int) -> None: ...
def mean_squared_error_forward(x: Array, target: Array, loss: Array, stream: int) -> None: ...
def mean_squared_error_backward(dloss: Array, x: Array, target: Array, dx: Array, stream: int) -> None: ...
def bias_backward(dy: Array, db: Array, workspace: Array, stream: int) -> None: ...
def batch_norm_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    epsilon: float,
    y: Array,
    mean: Array,
    var: Array,
    workspace: Array,
    stream: int,
) -> None: ...
def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    var: Array,
    epsilon: float,
    dx: Array,
    dgamma: Array,
    dbeta: Array,
    workspace: Array,
    stream: int,
) -> None: ...
def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float, y: Array, stream: int
) -> None: ...
def sgd_step(
    ws: list[Array],
    dws: list[Array],
    velocities: list[Array] | None,
    rates: Array,
    momentum: float,
    nesterov: bool,
    stream: int,
) -> None: ...
def adam_step(
    ws: list[Array],
    dws: list[Array],
    ms: list[Array],
    vs: list[Array],
    rates: Array,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    stream: int,
) -> None: ...
