"""Recorded work gives the bits of the blocks run one by one, and notices what has changed: on the CPU forward and backward, on
a GPU forward."""

import copy
import threading
import weakref
from typing import ClassVar

import fake_cupy
import numpy as np
import pytest
from fastnn import _backend, _config, _replay, layers, losses, models, ops, optimizers, set_seed
from support import unaligned

N, IMAGE = 6, (12, 11, 3)


def convolutional(**options):
    return models.Sequential(
        [
            layers.Input(IMAGE),
            layers.Conv2D(5, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(2),
            layers.Conv2D(4, 3, strides=2),
            layers.AveragePooling2D(2, strides=1),
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(3),
        ],
        **options,
    )


def normalized():
    return models.Sequential(
        [
            layers.Input(IMAGE),
            layers.Rescaling(1 / 255, -0.5),
            layers.RandomFlip(),
            layers.Conv2D(5, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Activation("sigmoid"),
            layers.Dense(3),
        ]
    )


def dropping():
    """What is recorded needs numbers that are drawn anew for each step."""
    return models.Sequential(
        [
            layers.Input(IMAGE),
            layers.RandomFlip("horizontal"),
            layers.Dropout(0.1),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(7, "relu"),
            layers.Dropout(0.0),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )


class Halving(layers.Layer):
    """Computes with NumPy."""

    def forward(self, x, training=False, drawn=()):
        return x / 2, None

    def backward(self, dy, saved, need_dx=True):
        return dy / 2, {}


def halving():
    """A layer that is not ops alone, and a trained one before it."""
    return models.Sequential(
        [layers.Input(IMAGE), layers.Conv2D(4, 3), Halving(), layers.Flatten(), layers.Dense(3)]
    )


MODELS = {
    "convolutional": convolutional,
    "float64": lambda: convolutional(dtype="float64"),
    "normalized": normalized,
    "dropping": dropping,
    "halving": halving,
}


def made(build, jit_compile):
    set_seed(1)
    model = build()
    model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile)
    return model


@pytest.fixture
def batches(rng):
    return [
        (rng.uniform(0, 255, (N, *IMAGE)).astype("f4"), rng.integers(0, 3, N).astype("i4")) for _ in range(6)
    ]


@pytest.fixture
def recorded(monkeypatch):
    """The recordings made, in order: whether of a step of training."""
    made = []
    for kind in (_replay.Replay, _replay.Step):

        def counted(self, *arguments, init=kind.__init__, kind=kind):
            init(self, *arguments)
            if type(self) is kind:
                made.append(kind is _replay.Step)

        monkeypatch.setattr(kind, "__init__", counted)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_same_bits_as_block_by_block(name, batches, recorded):
    plain, model = made(MODELS[name], False), made(MODELS[name], "auto")
    for x, y in batches:
        assert model.train_on_batch(x, y) == plain.train_on_batch(x, y)
        np.testing.assert_array_equal(model(x), plain(x))
        assert model.test_on_batch(x, y) == plain.test_on_batch(x, y)
        np.testing.assert_array_equal(model.predict(x), plain.predict(x))
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert recorded == ([False] if name == "halving" else [False, True])


def test_python_runs_no_more(batches, monkeypatch):
    model = made(convolutional, "auto")
    calls = []
    conv2d = ops.conv2d
    monkeypatch.setattr(ops, "conv2d", lambda *a, **k: calls.append(1) or conv2d(*a, **k))
    counts = []
    for x, _ in batches:
        model(x)
        counts.append(len(calls))
    assert counts == [1, 2, 2, 2, 2, 2]  # as it is, recorded, played


def test_results_are_the_callers_own(batches):
    model = made(convolutional, "auto")
    results = [model(x) for x, _ in batches]
    for (x, _), y in zip(batches, results, strict=True):
        np.testing.assert_array_equal(model(x), y)


def change_activation(model):
    model.layers[-1].activation = "softmax"


def change_params(model):
    model.layers[0].params["kernel"] = model.layers[0].params["kernel"] * 2


def drop_last_bias(model):
    del model.layers[-1].params["bias"]


def change_in_place(model):
    model.set_weights([w * 2 for w in model.get_weights()])


def add_layer(model):
    model.add(layers.Activation("sigmoid"))


def freeze(model):
    model.layers[2].trainable = False


@pytest.mark.parametrize(
    "exchange",
    [
        lambda p, w: p.__setitem__("bias", w),
        lambda p, w: p.__delitem__("bias"),
        lambda p, w: p.__ior__({"bias": w}),
        lambda p, w: p.update(bias=w),
        lambda p, w: p.pop("bias"),
        lambda p, w: p.popitem(),
        lambda p, w: p.setdefault("more", w),
        lambda p, w: p.clear(),
    ],
)
def test_each_way_to_exchange_a_weight_is_noticed(exchange):
    model = convolutional()
    before = _config.last_change
    exchange(model.layers[0].params, np.zeros(5, "f4"))
    assert _config.last_change > before


@pytest.mark.parametrize(
    "change", [change_activation, change_params, drop_last_bias, change_in_place, add_layer, freeze]
)
def test_changes_are_noticed(change, batches):
    plain, model = made(convolutional, False), made(convolutional, "auto")
    for step, (x, y) in enumerate(batches * 2):
        if step == 5:
            change(plain), change(model)
            plain.compile("sgd", "mse", jit_compile=False), model.compile("sgd", "mse")
        y = np.eye(3, dtype="f4")[y] if step >= 5 else y
        np.testing.assert_array_equal(model(x), plain(x))
        assert model.train_on_batch(x, y) == plain.train_on_batch(x, y)


def change_optimizer(model):
    model.optimizer.beta_1 = 0.5


def change_loss(model):
    model.loss.from_logits = False


def change_slots(model):
    model.optimizer.slots["m"] = tuple(map(np.ones_like, model.optimizer.slots["m"]))


def change_learning_rate(model):
    model.optimizer.learning_rate = 0.5


def change_state(model):
    state = model.optimizer.get_state()
    model.optimizer.set_state({**state, "iterations": 100}, model.trainable_weights)


def compile_again(model):
    model.compile(optimizers.SGD(0.1, momentum=0.9), model.loss, jit_compile=model.jit_compile)


@pytest.mark.parametrize(
    "change",
    [change_optimizer, change_loss, change_slots, change_learning_rate, change_state, compile_again],
)
def test_changes_between_steps_are_noticed(change, batches):
    plain, model = made(convolutional, False), made(convolutional, "auto")
    for some in (plain, model):
        some.add(layers.Activation("softmax"))  # for the loss of probabilities
    for step, (x, y) in enumerate(batches):
        if step == 3:
            change(plain), change(model)
        assert model.train_on_batch(x, y) == plain.train_on_batch(x, y)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_progress_is_no_change(batches, recorded):
    model = made(convolutional, "auto")
    for step, (x, y) in enumerate(batches):
        model.optimizer.learning_rate = 0.1 / (step + 1)
        model.train_on_batch(x, y)
    model.optimizer.iterations = 100
    model.train_on_batch(x, y)
    assert recorded == [True]


def test_attributes_of_any_name(batches):
    class Counting(losses.SparseCategoricalCrossentropy):
        def __init__(self):
            super().__init__(from_logits=True)
            self.changes, self.progress = [], 0.5

    model = made(convolutional, "auto")
    model.compile("sgd", Counting())
    model.layers[0].changes = model.layers[0].progress = None
    for x, y in batches[:3]:
        model.loss.changes, model.loss.progress = [x], model.loss.progress + 1
        assert np.isfinite(model.train_on_batch(x, y))


def test_targets_lie_as_they_like(batches):
    plain, model = made(convolutional, False), made(convolutional, "auto")
    for x, y in batches:
        for given in (unaligned(y), np.repeat(y, 2)[::2], y.astype("u8")[:, None], y[::-1][::-1]):
            assert model.train_on_batch(x, given) == plain.train_on_batch(x, given)


def test_training_what_is_not_recorded_is_noticed(batches, recorded):
    model = made(halving, "auto")
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    for x, y in batches[:3]:
        model.train_on_batch(x, y)
    assert recorded == [True]
    model.layers[0].trainable = True
    with pytest.raises(ValueError, match="call compile again"):
        model.train_on_batch(x, y)


class Halved(losses.MeanSquaredError):
    """Computes with NumPy, so it must be asked at each step."""

    def forward(self, y_pred, y_true, sample_weight=None):
        values, saved = super().forward(y_pred, y_true, sample_weight)
        return values / 2, saved

    def backward(self, saved):
        return super().backward(saved) / 2


class Sum(losses.MeanSquaredError):
    """Its backward needs no more of its forward than the shape."""

    like: ClassVar = []

    def forward(self, y_pred, y_true, sample_weight=None):
        self.like[:] = [y_pred]
        return y_pred.sum(axis=1), None

    def backward(self, saved):
        return np.full_like(self.like[0], 1 / len(self.like[0]))


class Descent(optimizers.SGD):
    def _step(self, ws, dws, rates):
        for w, dw in zip(ws, dws, strict=True):
            w -= 0.01 * dw


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        (lambda: optimizers.SGD(0.01), losses.MeanSquaredError),
        (lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True), Halved),
        (Descent, losses.MeanSquaredError),
        (optimizers.Adam, Sum),
        (Descent, Halved),
        (lambda: optimizers.Adam(weight_decay=0.1), lambda: losses.CategoricalCrossentropy(from_logits=True)),
        (optimizers.Adam, lambda: losses.CategoricalCrossentropy(True, label_smoothing=0.1)),
        (
            lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
            losses.MeanSquaredError,
        ),
    ],
)
def test_any_loss_and_optimizer(optimizer, loss, batches, recorded):
    plain, model = made(convolutional, False), made(convolutional, "auto")
    for some, jit_compile in ((plain, False), (model, "auto")):
        some.compile(optimizer(), loss(), jit_compile=jit_compile)
    for step, (x, y) in enumerate(batches):
        y = np.eye(3)[y]
        weights = np.arange(1.0, N + 1) if step % 2 else None
        x = np.asfortranarray(x) if step == 3 else x
        assert model.train_on_batch(x, y, weights) == plain.train_on_batch(x, y, weights)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert recorded == [True]


def test_a_step_without_a_finite_loss_changes_nothing(batches, recorded):
    model = made(normalized, "auto")
    for x, y in batches[:3]:
        model.train_on_batch(x, y)
    before = [w.copy() for w in [*model.weights, *model.optimizer.slots["m"]]]
    assert np.isnan(model.train_on_batch(np.full_like(x, np.nan), y))
    assert model.optimizer.iterations == 4
    for now, old in zip([*model.weights, *model.optimizer.slots["m"]], before, strict=True):
        np.testing.assert_array_equal(now, old)
    assert recorded == [True]


def test_samples_are_not_kept(batches):
    model = made(convolutional, "auto")
    x, y = batches[0]
    for _ in range(3):
        copied = x.copy()
        model.train_on_batch(copied, y), model.predict(copied, verbose=0), model(copied)
        gone = weakref.ref(copied)
        del copied
        assert gone() is None


def test_a_subclass_may_compute_something_else(batches, recorded):
    class Doubled(layers.Dense):
        def forward(self, x, training=False, drawn=()):
            y, saved = super().forward(x, training, drawn)
            return y * 2, saved

    model = models.Sequential([layers.Input((4,)), layers.Dense(3), Doubled(2), layers.ReLU()])
    for x in np.arange(48, dtype="f4").reshape(4, 3, 4):
        dense, doubled = model.layers[0].params, model.layers[1].params
        y = (x @ dense["kernel"] + dense["bias"]) @ doubled["kernel"] + doubled["bias"]
        np.testing.assert_allclose(model(x), np.maximum(y * 2, 0), rtol=1e-4)
    assert recorded == [False]  # of ReLU, which comes after it


def test_numpy_work_between_kernels_is_refused(rng):
    x = rng.standard_normal((3, 4)).astype("f4")
    with pytest.raises(
        _backend.NotRecordable, match="relu_forward is given an array that no kernel has made"
    ):
        _backend.Tape(lambda: ops.relu(x * 2), [x])
    with pytest.raises(_backend.NotRecordable, match="relu_forward"):
        _backend.Tape(lambda: ops.relu(ops.relu(x).T), [x])  # a copy in C order
    y = ops.relu(-x)  # nothing is recorded any more
    np.testing.assert_array_equal(y, np.maximum(-x, 0))


def test_a_launch_takes_arrays_like_its_inputs(rng):
    x, y = rng.standard_normal((2, 3, 4)).astype("f4")
    kept = []
    tape = _backend.Tape(lambda: kept.append(ops.relu_backward(x, y)), [], [x, y])
    for dy, of in ((y, x), (x, y)):
        tape.launch(dy, of)
        np.testing.assert_array_equal(kept[0], ops.relu_backward(dy, of))
    with pytest.raises(TypeError, match="launch takes 2 inputs, got 1"):
        tape.launch(x)
    with pytest.raises(ValueError, match=r"input 1 was recorded as float32 \(3, 4\), got float64 \(3, 4\)"):
        tape.launch(x, y.astype("f8"))
    with pytest.raises(ValueError, match=r"input 0 was recorded as float32 \(3, 4\), got float32 \(2, 4\)"):
        tape.launch(x[:2], y)
    with pytest.raises(ValueError, match=r"got float32 \(0, 3, 4\)$"):
        tape.launch(np.empty((0, 3, 4), "f4"), y)
    with pytest.raises(_backend.NotRecordable, match="a part of an input"):
        _backend.Tape(lambda: ops.relu(x[:2]), [], [x])


def test_a_frozen_normalization_trains_unrecorded(batches, recorded):
    plain, model = made(normalized, False), made(normalized, "auto")
    for some in (plain, model):
        some.layers[3].trainable = False
        some.compile("adam", some.loss, jit_compile=some.jit_compile)
    for x, y in batches:
        assert model.train_on_batch(x, y) == plain.train_on_batch(x, y)
    assert not recorded  # its backward computes with NumPy


def test_memory_is_bounded_and_aligned(batches, recorded, monkeypatch):
    given_to_kernels = []
    call = _backend.Tape._call
    monkeypatch.setattr(
        _backend.Tape, "_call", lambda self, *a: given_to_kernels.extend(a[1:]) or call(self, *a)
    )
    model = made(convolutional, "auto")
    for x, y in batches[:3]:
        model.train_on_batch(x, y)
    ((step,),) = model._steps._free.values()
    given = {id(array) for array in (*model.weights, step._x, *step._targets, step._rates)}
    arrays = [a for a in given_to_kernels if isinstance(a, np.ndarray) and a.size]
    assert len(arrays) > 20
    for array in arrays:
        base = array if array.base is None else array.base
        assert array.ctypes.data % 64 == 0 or id(base) in given
    assert recorded == [True]
    monkeypatch.setattr(_backend.Tape, "MOST", 5000)
    for x, _ in batches:
        model(x)
    assert recorded == [True]


def rescaling(**options):
    """Recorded from the stored samples on, whatever they are."""
    return models.Sequential(
        [
            layers.Input(IMAGE),
            layers.Rescaling(1 / 255, -0.5),
            layers.Conv2D(4, 3, strides=2),
            layers.Flatten(),
            layers.Dense(3),
        ],
        **options,
    )


STORED = {
    "uint8": lambda x: x.astype("u1"),
    "float32": lambda x: np.floor(x),
    "float64": lambda x: np.floor(x).astype("f8"),
    "int64": lambda x: x.astype("i8"),
    "float16": lambda x: np.floor(x).astype("f2"),
    "big-endian": lambda x: np.floor(x).astype(">f4"),
    "transposed": lambda x: np.asfortranarray(np.floor(x)),
    "strided": lambda x: np.repeat(np.floor(x), 2, axis=0)[::2],
    "unaligned": lambda x: unaligned(np.floor(x)),
    "read-only": lambda x: np.frombuffer(np.floor(x).tobytes(), "f4").reshape(x.shape),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", STORED)
def test_samples_may_be_stored_in_any_way(rng, recorded, stored, dtype):
    """fit, evaluate and predict on them have the bits of the same numbers in the model's dtype, gathered by NumPy."""
    x, y = rng.uniform(0, 255, (4 * N + 1, *IMAGE)).astype("f4"), rng.integers(0, 3, (4 * N + 1, 1))
    plain, model = made(lambda: rescaling(dtype=dtype), False), made(lambda: rescaling(dtype=dtype), "auto")
    there = STORED[stored](x)
    before = there.tobytes()
    results = [
        (
            some.fit(data, y, N, epochs=3, verbose=0, validation_split=0.3).history,
            some.evaluate(data, y, N, verbose=0),
            some.predict(data, N, verbose=0).tobytes(),
            some.train_on_batch(data[:N], y[:N]),
            [w.tobytes() for w in some.get_weights()],
        )
        for some, data in ((plain, np.floor(x).astype(dtype)), (model, there))
    ]
    assert results[0] == results[1]
    assert there.tobytes() == before
    assert recorded.count(True) == 2  # the epochs end with smaller batches
    assert recorded.count(False) >= 2


def test_one_size_of_two_kinds_of_samples(batches, recorded):
    plain, model = made(rescaling, False), made(rescaling, "auto")
    for x, y in batches:
        for kind in ("u1", "f4", "f8"):
            assert model.train_on_batch(x.astype(kind), y) == plain.train_on_batch(x.astype(kind), y)
            assert model(x.astype(kind)).tobytes() == plain(x.astype(kind)).tobytes()
    assert len(recorded) == 6


def test_rows_that_are_not_there_change_nothing(rng, recorded):
    """fit never names any; the kernels of a recording look, too."""
    model = made(rescaling, "auto")
    x, y = rng.integers(0, 256, (20, *IMAGE), np.uint8), rng.integers(0, 3, N).astype("i4")
    rows = np.arange(N, dtype="i4")
    for _ in range(3):
        assert np.isfinite(model.train_step(x, y, None, rows)[0])
    assert recorded == [True]
    before = model.get_weights()
    for wrong in (-1, 20, 2**31 - 1):
        rows[2] = wrong
        assert np.isnan(model.train_step(x, y, None, rows)[0])
    assert all(map(np.array_equal, before, model.get_weights()))
    with pytest.raises(ValueError, match=r"row 2147483647 at position 2 is not in \[0, 20\)"):
        made(rescaling, False).train_step(x, y, None, rows)


@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_data_is_not_kept(rng, recorded, kind):
    model = made(rescaling, "auto")
    x, y = rng.integers(0, 256, (4 * N, *IMAGE)).astype(kind), rng.integers(0, 3, 4 * N)
    gone = weakref.ref(x)
    model.fit(x, y, N, epochs=2, verbose=0)
    model.predict(x, N, verbose=0)
    assert recorded == [True, False]
    del x
    assert gone() is None
    x = rng.integers(0, 256, (4 * N, *IMAGE)).astype(kind)  # of the same shape: the recordings serve it, too
    plain = made(rescaling, False)
    plain.set_weights(model.get_weights())
    assert model.predict(x, N, verbose=0).tobytes() == plain.predict(x, N, verbose=0).tobytes()
    model.fit(x, y, N, verbose=0)
    assert recorded == [True, False]


def test_a_few_sizes_are_kept(batches, recorded):
    model = made(convolutional, "auto")
    x = batches[0][0]
    for n in (1, 2, 3, 4, 5):
        for _ in range(3):
            model(x[:n])
    assert len(recorded) == 5
    model(x[:5]), model(x[:2])
    assert len(recorded) == 5
    model(x[:1]), model(x[:1])
    assert len(recorded) == 6


def test_threads_get_their_own(batches):
    model = made(convolutional, "auto")
    expected = [model(x) for x, _ in batches]
    wrong = []

    def run(which):
        for _ in range(50):
            if not np.array_equal(model.predict(batches[which][0], verbose=0), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_has_its_own(batches):
    model = made(convolutional, "auto")
    for x, _ in batches[:3]:
        model(x)
    other = copy.deepcopy(model)
    other.set_weights([w * 0 for w in other.get_weights()])
    x = batches[0][0]
    for _ in range(3):
        assert not other(x).any()
        assert model(x).any()


# ---- Inference on a GPU, on a double of CuPy


def on_gpu(build, jit_compile="auto"):
    model = models.Sequential(build().layers, device="cuda")
    model.jit_compile = jit_compile
    model.set_weights(made(build, False).get_weights())
    return model


@pytest.mark.parametrize("name", ["convolutional", "normalized", "dropping"])
def test_inference_on_a_gpu(name, launches, batches):
    plain, model = on_gpu(MODELS[name], False), on_gpu(MODELS[name])
    found = [model(x) for x, _ in batches]
    assert len(launches) == len(batches) - 1  # the first time as it is
    assert len({id(graph) for graph in launches}) == 1
    for (x, _), y in zip(batches, found, strict=True):
        np.testing.assert_array_equal(y.get(), plain(x).get())
        np.testing.assert_array_equal(model.predict(x, verbose=0), y.get())
    assert len(launches) == 2 * len(batches) - 1


@pytest.mark.parametrize("change", [change_activation, change_params, change_in_place, add_layer])
def test_changes_are_noticed_on_a_gpu(change, launches, batches):
    plain, model = on_gpu(convolutional, False), on_gpu(convolutional)
    for x, _ in batches[:3]:
        model(x)
    change(model)
    change(plain)
    for x, _ in batches[3:]:
        np.testing.assert_array_equal(model(x).get(), plain(x).get())
    assert launches


def test_each_stream_has_its_own(launches, batches):
    model = on_gpu(convolutional)
    for stream in (fake_cupy.Stream(non_blocking=True), fake_cupy.Stream(non_blocking=True)):
        with stream:
            for x, _ in batches[:3]:
                model(x)
    assert len({id(graph) for graph in launches}) == 2


def test_layers_of_others_run_as_ever_on_a_gpu(launches, batches):
    class Looking(layers.ReLU):
        def forward(self, x, training=False, drawn=()):
            assert float(x.max()) < 1e30  # which a recording could not
            return super().forward(x, training, drawn)

    model = on_gpu(convolutional)
    model.add(Looking())
    plain = on_gpu(convolutional, False)
    plain.add(layers.ReLU())
    for x, _ in batches:
        np.testing.assert_array_equal(model(x).get(), plain(x).get())
    assert not launches
    model.add(layers.Dense(2))  # behind which all can be recorded
    for x, _ in batches:
        model(x)
    assert launches


def test_memory_is_bounded_on_a_gpu(launches, batches, monkeypatch):
    monkeypatch.setattr(_replay.GraphReplay, "MOST", 1000)
    model = on_gpu(convolutional)
    for x, _ in batches:
        model(x)
    assert not launches


def test_what_cannot_be_recorded_is_said(launches, batches, monkeypatch):
    def refuse(work):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr(_backend, "Graph", refuse)
    model, (x, _) = on_gpu(convolutional), batches[0]
    first = model(x)
    reason = r"the work cannot be recorded into a CUDA graph \(no graphs today\)"
    with pytest.warns(RuntimeWarning, match=f"^done without: {reason}$") as told:
        np.testing.assert_array_equal(model(x).get(), first.get())
    assert told[0].filename == __file__
    model(x)  # and not again
    model = on_gpu(convolutional, True)
    model(x)
    with pytest.raises(ValueError, match=f"^jit_compile=True: {reason}$"):
        model(x)
