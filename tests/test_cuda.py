"""Everything above the kernels on CuPy's arrays: on a double of CuPy and the kernels' host execution, no GPU needed."""

from __future__ import annotations

import os
import sys
import types

import fake_cupy
import fastnn
import numpy as np
import pytest
from fastnn import _backend, _gradcases, _gradlayers, cli, layers, models, ops, reference
from fastnn.losses import CategoricalCrossentropy, SparseCategoricalCrossentropy
from support import assert_identical, assert_same_bits, floats, integers

LOGITS = SparseCategoricalCrossentropy(from_logits=True)


def network(device, augment=True):
    fastnn.set_seed(5)
    model = models.Sequential(
        [
            layers.Rescaling(1 / 255, input_shape=(8, 8, 3)),
            *([layers.RandomFlip(), layers.RandomTranslation(0.1, fill_mode="constant")] if augment else []),
            layers.Conv2D(8, (3, 3), activation="relu", padding="same"),
            layers.BatchNormalization(),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(8, (3, 3), activation="tanh", strides=2, padding="same"),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(16, activation="sigmoid"),
            layers.Dense(4),
        ],
        device=device,
    )
    model.compile("adam", LOGITS, metrics=["accuracy"])
    return model


@pytest.fixture
def data(rng):
    return rng.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, (50, 1))


def test_ops_give_arrays_of_the_device(cuda, rng):
    x, w = integers(rng, (2, 5, 6, 3)), integers(rng, (3, 3, 3, 4))
    y = ops.conv2d(cuda.xp.asarray(x), cuda.xp.asarray(w))
    assert type(y) is fake_cupy.ndarray
    assert_identical(y.get(), reference.conv2d(x, w))
    view = cuda.xp.asarray(np.ascontiguousarray(x.transpose(0, 2, 1, 3)))
    transposed = fake_cupy.ndarray(view._array.transpose(0, 2, 1, 3))
    assert_identical(ops.conv2d(transposed, cuda.xp.asarray(w)).get(), reference.conv2d(x, w))


def test_arrays_in_two_places_are_refused(cuda, rng):
    a = floats(rng, (3, 3))
    with pytest.raises(TypeError, match="gemm: b is on a GPU, where other arrays of the call are not"):
        ops.gemm(a, fake_cupy.asarray(a))


def test_arrays_of_other_libraries(cuda, rng):
    """What speaks the CUDA Array Interface or DLPack is computed where it lies."""

    class Tensor:  # as PyTorch's: no flags, other methods
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    a, b = floats(rng, (4, 5)), floats(rng, (5, 3))
    y = ops.gemm(Tensor(a), Tensor(b))
    assert isinstance(y, np.ndarray)
    assert_same_bits(y, ops.gemm(a, b))
    labels, keep = np.array([0, 3, 4, 1], "i4"), a > 0
    for mine, theirs in zip(
        ops.softmax_cross_entropy(Tensor(a), Tensor(labels)),
        ops.softmax_cross_entropy(a, labels),
        strict=True,
    ):
        assert_same_bits(mine, theirs)
    assert_same_bits(ops.dropout(Tensor(a), Tensor(keep), rate=0.5), ops.dropout(a, keep, rate=0.5))
    x = floats(rng, (1, 4, 4, 2))
    y, argmax = ops.max_pool2d(x, 2)
    assert_same_bits(
        ops.max_pool2d_backward(Tensor(y), Tensor(argmax), x.shape, 2),
        ops.max_pool2d_backward(y, argmax, x.shape, 2),
    )


def test_training_follows_the_cpu(cuda, data):
    """Shuffling, augmentation, dropout and all: the same network in both places, up to rounding."""
    histories = {}
    for device in ("cpu", "cuda"):
        model = network(device)
        histories[device] = model.fit(
            *data,
            epochs=3,
            batch_size=16,
            verbose=0,
            validation_data=data,
            class_weight={1: 2.0},
        ).history
        assert type(model.weights[0]) is (np.ndarray if device == "cpu" else fake_cupy.ndarray)
        assert all(type(w) is np.ndarray for w in model.get_weights())
        assert type(model.predict(data[0], verbose=0)) is np.ndarray
    for name, values in histories["cpu"].items():
        np.testing.assert_allclose(histories["cuda"][name], values, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("loss", ["mse", CategoricalCrossentropy(from_logits=False, label_smoothing=0.1)])
def test_losses_on_dense_targets(cuda, data, loss):
    x, labels = data
    y = np.eye(4, dtype=np.float32)[labels[:, 0]]
    scores = {}
    for device in ("cpu", "cuda"):
        model = network(device, augment=False)
        model.add(layers.Activation("softmax"))
        model.compile("sgd", loss, metrics=["accuracy", "top_k_categorical_accuracy"])
        scores[device] = [model.train_on_batch(x, y), model.evaluate(x, y, verbose=0)]
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], rtol=1e-4)


def test_the_seed_fixes_every_bit(cuda, data):
    first, second = network("cuda"), network("cuda")
    for model in (first, second):
        model.fit(*data, epochs=2, batch_size=16, verbose=0)
        cuda.native.set_order_seed(99)
    cuda.native.set_order_seed(1)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_models_move_between_devices_by_their_files(cuda, data, tmp_path):
    model = network("cuda")
    model.fit(*data, epochs=1, verbose=0)
    model.save(tmp_path / "model.safetensors")
    there, here = (models.load_model(tmp_path / "model.safetensors", device=d) for d in ("cuda", "cpu"))
    for a, b, c in zip(model.get_weights(), there.get_weights(), here.get_weights(), strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)
    x = data[0]
    np.testing.assert_allclose(here.predict(x, verbose=0), there.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    for resumed in (model, there):  # with the optimizer's state
        resumed.seed = 1
        resumed.fit(*data, epochs=1, verbose=0)
    for a, b in zip(model.get_weights(), there.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_gradcheck(cuda, capsys, monkeypatch):
    some = (
        _gradcases._bias,
        _gradcases._cross_entropy,
        _gradcases._optimizers,
    )  # all take half a minute here
    monkeypatch.setattr(_gradcases, "OPS", some)
    monkeypatch.setattr(_gradlayers, "LAYERS", (_gradlayers._losses,))
    assert cli.main(["gradcheck", "--device", "cuda"]) == 0
    assert "checks pass" in capsys.readouterr().out


def test_there_is_a_gpu(data):
    """The op tests run on it, too, as backend "cuda"; here the layers do, and fit and inference, recorded and not."""
    if reason := _backend.cuda_state():
        if os.environ.get("FASTNN_REQUIRE_CUDA"):
            pytest.fail(reason)
        pytest.skip(f"nothing was tested on a GPU: {reason}")
    histories, weights = [], []
    for device, jit in (("cpu", False), ("cuda", False), ("cuda", True)):
        model = network(device)
        model.compile("adam", LOGITS, metrics=["accuracy"], jit_compile=jit)
        histories.append(model.fit(*data, epochs=3, batch_size=16, verbose=0).history)
        first, *others = (model.predict(data[0], batch_size=25, verbose=0) for _ in range(3))
        for other in others:
            assert_same_bits(other, first)
        weights.append(model.get_weights())
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-3)
    assert histories[2] == histories[1]
    for a, b in zip(*weights[1:], strict=True):
        assert_same_bits(a, b)


# ---- What is missing is said at use, never at import


def unavailable(monkeypatch, modules):
    """Puts stand-ins, or None for "not there", in the place of modules, and forgets what was found before."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    _backend._cuda_parts.cache_clear()


def cupy_with(count):
    def device_count():
        if isinstance(count, Exception):
            raise count
        return count

    runtime = types.SimpleNamespace(getDeviceCount=device_count)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"fastnn._cuda": None}, "built without CUDA kernels: install the CUDA toolkit"),
        ({"fastnn._cuda": types.ModuleType("_cuda"), "cupy": None}, r"CuPy does not load .*\[cuda\]"),
        (
            {
                "fastnn._cuda": types.ModuleType("_cuda"),
                "cupy": cupy_with(RuntimeError("insufficient driver")),
            },
            r"no NVIDIA driver or no GPU \(insufficient driver\)",
        ),
        ({"fastnn._cuda": types.ModuleType("_cuda"), "cupy": cupy_with(0)}, "driver sees no GPU"),
    ],
    ids=["no-kernels", "no-cupy", "no-driver", "no-gpu"],
)
def test_what_is_missing_is_said(monkeypatch, capsys, modules, message):
    unavailable(monkeypatch, modules)
    for use in (
        lambda: models.Sequential(device="cuda"),
        lambda: ops.relu(fake_cupy.asarray(np.ones(3, np.float32))),
    ):
        with pytest.raises(RuntimeError, match=f"device 'cuda' is not available: .*{message}"):
            use()
    assert cli.main(["info"]) == 0
    assert "absent: " in capsys.readouterr().out
