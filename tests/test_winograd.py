"""precision="winograd" on the CPU: exact where float32 is, within its stated bound elsewhere, and the same at the edges."""

import fastnn
import numpy as np
import pytest
from fastnn import _backend, layers, losses, models, ops, reference, set_seed
from support import assert_identical, assert_same_bits, assert_within, floats, integers

# n, height, width, channels, filters, padding: of sizes that Winograd is used for
SHAPES = [
    (4, 10, 10, 16, 16, "valid"),
    (2, 15, 15, 32, 64, "valid"),
    (3, 13, 11, 17, 33, "same"),
    (1, 17, 18, 40, 19, 2),
    (5, 9, 12, 16, 70, ((0, 3), (1, 0))),
    (70, 4, 4, 21, 16, "valid"),
    (2, 40, 3, 16, 16, "same"),
]
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def make(shape, values, rng, dtype=np.float32):
    n, h, w, c, k, padding = shape
    return (
        values(rng, (n, h, w, c), dtype),
        values(rng, (3, 3, c, k), dtype),
        values(rng, (k,), dtype),
        {"padding": padding},
    )


def sides(size, padding):
    """Zeros before, and how many outputs."""
    if padding == "valid":
        return (0, 0), size[0] - 2
    before, after = (
        (1, 1) if padding == "same" else (padding, padding) if isinstance(padding, int) else padding
    )
    return (before, after), size[0] + before + after - 2


def formula(x, w, b, padding):
    """Winograd's formula with the absolute values of all its numbers, in float64."""
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    (top, bottom), rows = sides((x.shape[1],), pads[0])
    (left, right), cols = sides((x.shape[2],), pads[1])
    x = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (top, bottom + 3), (left, right + 3), (0, 0)))
    u = np.einsum("ar,rqck,bq->abck", abs(G), np.abs(w.astype(np.float64)), abs(G))
    y = np.zeros((len(x), rows + 1, cols + 1, w.shape[3]))
    for i in range(0, rows, 2):
        for j in range(0, cols, 2):
            v = np.einsum("ar,nrqc,bq->nabc", abs(B), x[:, i : i + 4, j : j + 4], abs(B))
            m = np.einsum("nabc,abck->nabk", v, u)
            y[:, i : i + 2, j : j + 2] = np.einsum("ra,nabk,qb->nrqk", abs(A), m, abs(A))
    return y[:, :rows, :cols] + np.abs(b)


def bound(channels, dtype, magnitude):
    return (channels + 12) * np.finfo(dtype).eps * magnitude


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_on_integers(rng, shape, dtype):
    x, w, b, options = make(shape, integers, rng, dtype)
    for relu in (False, True):
        y = ops.conv2d(x, w, b, relu=relu, precision="winograd", **options)
        assert_identical(y, ops.conv2d(x, w, b, relu=relu, **options))
    dy = integers(rng, y.shape, dtype)
    dx = ops.conv2d_backward_x(dy, w, x.shape, precision="winograd", **options)
    assert_identical(dx, ops.conv2d_backward_x(dy, w, x.shape, **options))
    dw = ops.conv2d_backward_w(dy, x, w.shape, precision="winograd", **options)
    assert_identical(dw, ops.conv2d_backward_w(dy, x, w.shape, **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_stated_bound(rng, shape, dtype):
    x, w, b, options = make(shape, floats, rng, dtype)
    exact = reference.conv2d(x, w, b, **options)
    y = ops.conv2d(x, w, b, precision="winograd", **options)
    assert_within(y, exact, bound(x.shape[3], dtype, formula(x, w, b, options["padding"])))
    plain = ops.conv2d(x, w, b, **options)
    assert (y != plain).any()  # it is another sum
    assert np.square(y - exact).sum() < np.square(plain - exact).sum()


def test_gradient_of_x_within_the_stated_bound(rng):
    n, h, w, c, k, _ = 4, 12, 12, 20, 24, "same"
    dy, filters = floats(rng, (n, h, w, k)), floats(rng, (3, 3, c, k))
    dx = ops.conv2d_backward_x(dy, filters, (n, h, w, c), padding="same", precision="winograd")
    turned = filters[::-1, ::-1].transpose(0, 1, 3, 2)
    magnitude = formula(dy, turned, np.zeros(c), "same")
    exact = reference.conv2d_backward_x(dy, filters, (n, h, w, c), padding="same")
    assert_within(dx, exact, bound(k, np.float32, magnitude))
    assert (dx != ops.conv2d_backward_x(dy, filters, (n, h, w, c), padding="same")).any()


def formula_of_dw(dy, x, padding):
    """The transposed formula with the absolute values of all its numbers, in float64, and how many tiles it adds up."""
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    (top, bottom), _ = sides((x.shape[1],), pads[0])
    (left, right), _ = sides((x.shape[2],), pads[1])
    x = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (top, bottom + 3), (left, right + 3), (0, 0)))
    rows, cols = -(-dy.shape[1] // 2) * 2, -(-dy.shape[2] // 2) * 2
    dy = np.pad(
        np.abs(dy.astype(np.float64)), ((0, 0), (0, rows - dy.shape[1]), (0, cols - dy.shape[2]), (0, 0))
    )
    u = np.zeros((4, 4, x.shape[3], dy.shape[3]))
    for i in range(0, rows, 2):
        for j in range(0, cols, 2):
            v = np.einsum("ar,nrqc,bq->nabc", abs(B), x[:, i : i + 4, j : j + 4], abs(B))
            m = np.einsum("ra,nrqk,qb->nabk", abs(A), dy[:, i : i + 2, j : j + 2], abs(A))
            u += np.einsum("nabc,nabk->abck", v, m)
    return np.einsum("ar,abck,bq->rqck", abs(G), u, abs(G)), len(x) * rows * cols // 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_w_within_the_stated_bound(rng, shape, dtype):
    x, w, _, options = make(shape, floats, rng, dtype)
    dy = floats(rng, ops.conv2d(x, w, **options).shape, dtype)
    exact = reference.conv2d_backward_w(dy, x, w.shape, **options)
    dw = ops.conv2d_backward_w(dy, x, w.shape, precision="winograd", **options)
    magnitude, tiles = formula_of_dw(dy, x, options["padding"])
    assert_within(dw, exact, bound(tiles, dtype, magnitude))
    plain = ops.conv2d_backward_w(dy, x, w.shape, **options)
    assert (dw != plain).any()
    if dtype == np.float32:  # the reference is exact
        assert np.square(dw - exact).sum() < 4 * np.square(plain - exact).sum()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("where", ["x", "w", "dy", "b"])
def test_what_is_not_finite_stays_where_it_belongs(rng, bad, where):
    """Through the transforms it would reach all outputs of a tile; 3e38 alone overflows in them."""
    x, w, b, options = make((2, 12, 13, 16, 20, "same"), integers, rng)
    dy = integers(rng, (2, 12, 13, 20))
    x[0, 5, 6, 3] = dy[1, 4, 4, 7] = b[2] = 0
    w[0, 0, 3, :10] = 0
    {"x": x[0, 5, 6], "w": w[0, 0, 3], "dy": dy[1, 4, 4], "b": b}[where][2] = bad
    for op, arguments in (
        (ops.conv2d, (x, w, b)),
        (ops.conv2d_backward_x, (dy, w, x.shape)),
        (ops.conv2d_backward_w, (dy, x, w.shape)),
    ):
        expected = op(*arguments, **options)
        actual = op(*arguments, precision="winograd", **options)
        assert_identical(np.isnan(actual), np.isnan(expected))
        assert_identical(np.isinf(actual), np.isinf(expected))
        if not np.isfinite(bad):
            assert_identical(actual, expected)


def test_padding_takes_no_part(rng):
    """An infinite weight that lies over padding leaves no trace there."""
    x, w = integers(rng, (1, 20, 20, 16)), integers(rng, (3, 3, 16, 16))
    w[0, 0, 0] = np.inf
    y = ops.conv2d(x, w, padding="same", precision="winograd")
    assert_identical(y, ops.conv2d(x, w, padding="same"))
    assert np.isfinite(y[0, 0]).all()
    assert np.isfinite(y[0, :, 0]).all()


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_fused_has_the_bits_of_the_separate_ops(rng, shape):
    x, w, b, options = make(shape, floats, rng)
    options["precision"] = "winograd"
    for relu in (False, True):
        y, argmax = ops.conv2d_max_pool2d(x, w, b, window=2, relu=relu, **options)
        apart, positions = ops.max_pool2d(ops.conv2d(x, w, b, relu=relu, **options), 2)
        assert_same_bits(y, apart)
        assert_identical(argmax, np.where(apart > 0, positions, reference.NO_GRADIENT) if relu else positions)
    x[:, 3, 3] = np.nan
    y, argmax = ops.conv2d_max_pool2d(x, w, b, window=2, **options)
    apart, positions = ops.max_pool2d(ops.conv2d(x, w, b, **options), 2)
    assert_identical(y, apart)
    assert_identical(argmax, positions)


def test_elsewhere_it_is_float32(rng):
    x = floats(rng, (4, 12, 12, 16))
    for window, options in (
        ((3, 3), {"stride": 2}),
        ((3, 3), {"dilation": 2}),
        ((5, 5), {}),
        ((1, 1), {}),
        ((3, 2), {}),
    ):
        w = floats(rng, (*window, 16, 16))
        y = ops.conv2d(x, w, **options)
        assert_same_bits(ops.conv2d(x, w, precision="winograd", **options), y)
        assert_same_bits(
            ops.conv2d_backward_w(y, x, w.shape, precision="winograd", **options),
            ops.conv2d_backward_w(y, x, w.shape, **options),
        )
    w = floats(rng, (3, 3, 16, 16))
    assert_same_bits(ops.conv2d(x[:2, :6, :6], w, precision="winograd"), ops.conv2d(x[:2, :6, :6], w))
    assert_same_bits(
        ops.conv2d(x[..., :15], w[:, :, :15], precision="winograd"), ops.conv2d(x[..., :15], w[:, :, :15])
    )
    a, b = floats(rng, (5, 7)), floats(rng, (7, 6))
    assert_same_bits(ops.gemm(a, b, precision="winograd"), ops.gemm(a, b))


@pytest.mark.parametrize(
    "shape",
    [
        SHAPES[1],
        (70, 10, 10, 16, 80, "same"),  # some slices of the gradient's sum
        (4, 16, 16, 150, 300, "valid"),  # a filter of more than L2: tiles in greater groups
    ],
    ids=str,
)
def test_any_number_of_threads_has_the_same_bits(rng, shape):
    x, w, b, options = make(shape, floats, rng)
    results = []
    threads = fastnn.get_num_threads()
    try:
        for count in (1, 2, 5, 40):
            fastnn.set_num_threads(count)
            y = ops.conv2d(x, w, b, precision="winograd", **options)
            results.append((y, ops.conv2d_backward_w(y, x, w.shape, precision="winograd", **options)))
    finally:
        fastnn.set_num_threads(threads)
    for y, dw in results[1:]:
        assert_same_bits(y, results[0][0])
        assert_same_bits(dw, results[0][1])


def test_on_a_gpu_it_is_refused(on_host, rng):
    x, w, _, _ = make(SHAPES[0], floats, rng)
    with on_host("cuda_host"), pytest.raises(ValueError, match="'winograd' is the CPU's; on a GPU there are"):
        ops.conv2d(x, w, precision="winograd")


def network(precision):
    set_seed(3)
    model = models.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(16, 3, activation="relu", padding="same"),
            layers.Conv2D(16, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu", padding="same"),
            layers.Flatten(),
            layers.Dense(4),
        ],
        precision=precision,
    )
    model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_model_uses_it(rng, tmp_path):
    x, y = rng.standard_normal((64, 16, 16, 3)).astype("f4"), rng.integers(0, 4, 64).astype("i4")
    plain, model = network("float32"), network("winograd")
    histories = [
        some.fit(x, y, epochs=3, batch_size=16, verbose=0).history["loss"] for some in (plain, model)
    ]
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
    assert (model(x) != plain(x)).any()
    again = network("winograd")
    again.fit(x, y, epochs=3, batch_size=16, verbose=0)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(ours, theirs)
    pytest.importorskip("safetensors")
    model.save(tmp_path / "model.safetensors")
    loaded = models.load_model(tmp_path / "model.safetensors", precision="winograd")
    assert_same_bits(loaded(x), model(x))
    assert models.load_model(tmp_path / "model.safetensors").precision == "float32"


def test_precisions_of_a_device():
    with pytest.raises(ValueError, match="device 'cpu' must be one of 'float32', 'winograd', got 'tf32'"):
        models.Sequential(precision="tf32")
    with pytest.raises(ValueError, match="device 'cuda' must be one of 'float32', 'tf32', 'bfloat16', got"):
        _backend.check_precision("winograd", "cuda")
