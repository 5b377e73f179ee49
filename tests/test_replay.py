"""Forward and backward recorded on the CPU give the bits of the blocks run one by one, and notice what has changed."""

import copy
import threading

import numpy as np
import pytest
from fastnn import _backend, _replay, layers, losses, models, ops, set_seed

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
    """In training the last but one is not ops alone, and there is a trained layer before it."""
    return models.Sequential(
        [layers.Input(IMAGE), layers.Flatten(), layers.Dense(7, "relu"), layers.Dropout(0.5), layers.Dense(3)]
    )


MODELS = {
    "convolutional": convolutional,
    "float64": lambda: convolutional(dtype="float64"),
    "normalized": normalized,
    "dropping": dropping,
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
    """The recordings made, in order: whether for training."""
    made = []
    init = _replay.Replay.__init__

    def counted(self, model, x, training, drawn):
        init(self, model, x, training, drawn)
        made.append(training)

    monkeypatch.setattr(_replay.Replay, "__init__", counted)
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
    assert recorded == ([False] if name == "dropping" else [False, True])


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
    given = {id(w) for w in model.weights}
    for x, y in batches[:3]:
        model.train_on_batch(x, y)
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
