"""On the CPU fit does several steps at once, without Python in between, to the bits of the same steps one by one."""

import signal
import threading
import time

import numpy as np
import pytest
from fastnn import (
    _backend,
    _replay,
    callbacks,
    layers,
    losses,
    models,
    ops,
    optimizers,
    runs,
    set_seed,
    training,
)

SIZE, BATCHES, IMAGE = 4, 23, (7, 6, 2)
SAMPLES = SIZE * BATCHES - 3  # the last batch is a smaller one


def convolutional(dtype="float32", dropout=False, normalized=False):
    some = [layers.Input(IMAGE), layers.Conv2D(5, 3, activation="relu"), layers.MaxPooling2D(2)]
    some += [layers.Dropout(0.3)] * dropout + [layers.BatchNormalization()] * normalized
    some += [layers.Flatten(), layers.Dense(6, "tanh")]
    some += [layers.Dropout(0.5, name="last")] * dropout + [
        layers.BatchNormalization(name="second")
    ] * normalized
    return models.Sequential([*some, layers.Dense(3)], dtype=dtype)


def augmented():
    some = [
        layers.Rescaling(0.5),
        layers.RandomFlip(),
        layers.RandomTranslation(0.3, 0.2),
        layers.Conv2D(2, 3),
    ]
    some += [
        layers.RandomFlip("vertical"),
        layers.RandomTranslation(0.3, 0, fill_mode="constant", fill_value=2.0),
    ]
    return models.Sequential([layers.Input(IMAGE), *some, layers.Flatten(), layers.Dense(3)])


class Doubled(layers.Layer):
    def forward(self, x, training=False, drawn=()):
        return x * 2, None


def doubled():
    return models.Sequential([layers.Input(IMAGE), Doubled(), *rescaled().layers])


def rescaled():
    return models.Sequential(
        [
            layers.Input(IMAGE),
            layers.Rescaling(2.0, -0.5),
            layers.Conv2D(2, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


MODELS = {
    "float32": convolutional,
    "float64": lambda: convolutional("float64"),
    "dropout": lambda: convolutional(dropout=True),
    "normalized": lambda: convolutional(normalized=True),
    "rescaled": rescaled,
    "augmented": augmented,
}


def made(build=convolutional, jit_compile="auto", optimizer="adam", loss=None, metrics=("accuracy",)):
    set_seed(3)
    model = build()
    loss = loss or losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=list(metrics), jit_compile=jit_compile)
    return model


@pytest.fixture
def data(rng):
    return rng.standard_normal((SAMPLES, *IMAGE)).astype("f4"), rng.integers(0, 3, SAMPLES)


@pytest.fixture
def counts(monkeypatch):
    """Of how many steps were done at once, for each call; on a machine of any speed."""
    made, steps = [], _replay.Step.steps

    def counted(self, *arguments):
        results = steps(self, *arguments)
        made.append(len(results[0]))
        return results

    monkeypatch.setattr(_replay.Step, "steps", counted)
    monkeypatch.setattr(training.Pace, "SECONDS", 1e9)
    return made


def everything(model, history):
    arrays = [*model.weights, *(array for slot in model.optimizer.slots.values() for array in slot)]
    return history.history, model.optimizer.iterations, [array.tobytes() for array in arrays]


def fitted(model, data, **options):
    return everything(model, model.fit(*data, **{"batch_size": SIZE, "epochs": 3, "verbose": 0, **options}))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_same_bits_as_one_by_one(name, shuffle, data, counts):
    results = [fitted(made(MODELS[name], jit), data, shuffle=shuffle) for jit in ("auto", False)]
    assert results[0] == results[1]
    assert counts == [
        2,
        4,
        8,
        7,
        16,
        6,
        1,
        22,
        1,
    ]  # of the first batch of each size there is no recording yet


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        (lambda: optimizers.SGD(0.01, momentum=0.9), losses.MeanSquaredError),
        (
            lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), weight_decay=0.1),
            lambda: losses.CategoricalCrossentropy(from_logits=True),
        ),
    ],
)
def test_rates_of_each_step(optimizer, loss, data, counts):
    data = data[0], np.eye(3)[data[1]]
    results = [
        fitted(made(jit_compile=jit, optimizer=optimizer(), loss=loss()), data) for jit in ("auto", False)
    ]
    assert results[0] == results[1]
    assert max(counts) == 22


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: np.round(x).astype("i8"),
        lambda x: x.astype("f8"),
        lambda x: x.astype(">f4"),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
    ],
)
@pytest.mark.parametrize("size", [1, SIZE])
@pytest.mark.parametrize("shuffle", [True, False])
def test_samples_of_any_kind(stored, size, shuffle, data, counts):
    data = stored(data[0]), data[1]
    options = {"batch_size": size, "shuffle": shuffle}
    results = [fitted(made(jit_compile=jit), data, **options) for jit in ("auto", False)]
    assert results[0] == results[1]
    assert max(counts) >= 16


def test_what_needs_python_in_each_step(data, counts):
    """Other blocks first, weights, a loss or an optimizer of the user's: one by one."""

    class Halved(losses.MeanSquaredError):
        def backward(self, saved):
            return super().backward(saved) / 2

    class Descent(optimizers.SGD):
        def _step(self, ws, dws, rates):
            for w, dw in zip(ws, dws, strict=True):
                w -= 0.01 * dw

    dense = data[0], np.eye(3)[data[1]]
    for options, given, more in (
        ({"build": doubled}, data, {}),
        ({}, data, {"class_weight": {1: 2.0}}),
        ({"loss": Halved()}, dense, {}),
        ({"optimizer": Descent()}, data, {}),
    ):
        results = [fitted(made(jit_compile=jit, **options), given, **more) for jit in ("auto", False)]
        assert results[0] == results[1]
    assert not counts


def test_a_metric_sees_one_batch_at_a_time(data, counts):
    seen = []

    def spread(y_true, y_pred):
        seen.append(y_pred.shape)
        return np.full(len(y_pred), y_pred.max() - y_pred.min())

    results = [fitted(made(jit_compile=jit, metrics=["accuracy", spread]), data) for jit in ("auto", False)]
    assert results[0] == results[1]
    assert set(seen) == {(SIZE, 3), (SAMPLES % SIZE, 3)}
    assert max(counts) == 22


@pytest.mark.parametrize("name", ["float32", "normalized"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(name, value, data, counts):
    data[0][SIZE * 9 : SIZE * 11] = value  # in the middle of eight
    results = []
    for jit in ("auto", False):
        with pytest.warns(RuntimeWarning, match=r"epoch 1, batch 10 \(step 10\): the loss is") as told:
            results.append(fitted(made(MODELS[name], jit), data, shuffle=False))
        assert len(told) == 1
    np.testing.assert_equal(*(result[0] for result in results))
    assert results[0][1:] == results[1][1:]
    assert counts[:4] == [2, 4, 3, 1]  # ended by the first, then by the second


def test_terminate_on_nan(data, counts, capsys):
    data[0][SIZE * 9] = np.nan
    results, printed = [], []
    for jit in ("auto", False):
        watch = callbacks.TerminateOnNaN()
        results.append(fitted(made(jit_compile=jit), data, shuffle=False, callbacks=watch))
        assert watch.report == "Epoch 1, batch 10: the loss is nan; training ends."
        printed.append(capsys.readouterr().out)
    np.testing.assert_equal(*results)
    assert results[0][1] == 10
    assert printed[0] == printed[1] == f"{watch.report}\n"
    assert counts == [2, 4, 3]


# ---- Callbacks have their turn when they want it


class Watch(callbacks.Callback):
    def __init__(self):
        self.begun, self.ended = [], []


class Begin(Watch):
    def on_train_batch_begin(self, batch, logs):
        self.begun.append(batch)


class End(Watch):
    def on_train_batch_end(self, batch, logs):
        self.ended.append((batch, self.model.optimizer.iterations, logs["loss"]))


class Patient(End):
    def batches_at_once(self):
        return 3


class Impatient(Patient):
    """Has a hook, but says nothing of it."""

    def on_train_batch_end(self, batch, logs):
        super().on_train_batch_end(batch, logs)


def test_hooks_are_called_for_each_batch(data, counts):
    watches = [Begin(), End(), Impatient(), Patient(), Watch()]
    watches[3].on_train_batch_begin = lambda batch, logs: watches[3].begun.append(batch)
    watches[4].on_train_batch_end = lambda batch, logs: watches[4].ended.append(batch)
    for watch in watches:
        counts.clear()
        fitted(made(), data, epochs=2, callbacks=watch)
        assert set(counts) == {1}
        assert len(watch.begun) == BATCHES * 2 * (watch in (watches[0], watches[3]))
        assert len(watch.ended) == BATCHES * 2 * (watch is not watches[0])


def test_hooks_that_can_wait(data, counts):
    every, third = End(), Patient()
    fitted(made(), data, epochs=2, callbacks=[every])
    counts.clear()
    fitted(made(), data, epochs=2, callbacks=[third])
    assert counts == [2, *[3] * 6, 1, *[3] * 7, 1, 1]
    assert third.ended == [entry for entry in every.ended if entry in third.ended]
    assert [batch for batch, *_ in third.ended][:4] == [0, 2, 5, 8]


def test_files_every_so_many_batches(data, counts, tmp_path):
    contents = []
    for jit in ("auto", False):
        folder = tmp_path / str(jit)
        folder.mkdir()
        save = callbacks.ModelCheckpoint(
            folder / "{epoch}-{batch}-{loss:.6f}.safetensors", save_freq=5, save_weights_only=True
        )
        backup = callbacks.BackupAndRestore(folder, save_freq=7, delete_checkpoint=False)
        backup.on_epoch_end = lambda epoch, logs: None
        fitted(made(jit_compile=jit), data, callbacks=[save, backup])
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3 * BATCHES // 5 + 1
    assert {2, 3, 5} >= set(counts) - {1, 4}
    assert max(counts) == 5


def test_a_stopwatch_counts_every_image(data, counts):
    watch = runs.Stopwatch()
    fitted(made(), data, callbacks=watch)
    assert watch.images == 3 * SAMPLES
    assert 0 < watch.training <= watch.seconds
    assert max(counts) == 22


def test_ctrl_c_waits_for_the_steps_at_work(data, counts, monkeypatch):
    model, steps = made(), _replay.Step.steps

    def interrupted(self, count, *arguments):
        if count == 8:
            signal.raise_signal(signal.SIGINT)
        return steps(self, count, *arguments)

    monkeypatch.setattr(_replay.Step, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(model, data)
    assert model.optimizer.iterations == 1 + 2 + 4 + 8


def test_other_threads_go_on_meanwhile(data, counts):
    """The steps hold no lock of Python's."""
    model, moments, ended = made(), [], threading.Event()

    def watch():
        while not ended.wait(0.0005):
            moments.append(time.perf_counter())

    thread = threading.Thread(target=watch)
    thread.start()
    fitted(model, data, epochs=20)
    ended.set()
    thread.join()
    assert len(moments) > 5


def test_steps_that_fail_are_not_counted(data, monkeypatch):
    model = made()
    fitted(model, data, epochs=1)
    before = model.optimizer.iterations
    monkeypatch.setattr(_backend.host().native, "launch_steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(model, data)
    assert model.optimizer.iterations == before


def test_as_many_at_once_as_a_moment_allows(monkeypatch):
    pace, clock = training.Pace(), iter(range(1000))
    monkeypatch.setattr(
        training.time, "perf_counter", lambda: float(next(clock))
    )  # whatever is done takes a second
    monkeypatch.setattr(pace, "SECONDS", 2.0)
    seen = []
    for _ in range(10):
        seen.append(pace.begin(1000))
        pace.end(seen[-1])
    assert seen == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]
    assert pace.begin(100) == 100
    pace.end(100)  # it was asked for fewer, which says nothing of as many
    assert pace.begin(1000) == 256
    assert pace.begin(-1) == pace.begin(0) == 1
    monkeypatch.setattr(pace, "SECONDS", 0.025)
    pace.begin(1000), pace.end(256)
    assert pace.begin(1000) == 6
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    pace.begin(1000), pace.end(6)
    assert pace.begin(1000) == 1


# ---- Inference


@pytest.fixture
def batches(monkeypatch, counts):
    """Of how many batches y was had at once, for each call."""
    made, real = [], _replay.Replay.batches
    monkeypatch.setattr(_replay.Replay, "batches", lambda self, x, n: made.append(n) or real(self, x, n))
    return made


class Probabilities(losses.SparseCategoricalCrossentropy):
    """Looks at a batch as a whole."""

    def forward(self, y_pred, y_true, sample_weight=None):
        values, saved = super().forward(y_pred, y_true, sample_weight)
        return values * len(y_pred), saved


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss", [None, losses.SparseCategoricalCrossentropy(), Probabilities(from_logits=True)]
)
@pytest.mark.parametrize("name", MODELS)
def test_inference_has_the_same_bits(name, loss, weighted, data, batches, rng):
    def largest(y_true, y_pred):
        return np.full(len(y_pred), y_pred.max())

    weights = rng.uniform(0, 2, SAMPLES) if weighted else None
    results = []
    for jit in ("auto", False):
        model = made(MODELS[name], jit, loss=loss, metrics=["accuracy", largest])
        if loss and not loss.from_logits:
            model.add(layers.Activation("softmax"))
        scores = [model.evaluate(*data, SIZE, verbose=0, sample_weight=weights) for _ in range(2)]
        results.append((scores, model.predict(data[0], SIZE, verbose=0).tobytes()))
    assert results[0] == results[1]
    assert batches == [
        2,
        4,
        8,
        7,
        2,
        4,
        8,
        7,
        2,
        4,
        8,
        7,
    ]  # the first alone, and the last one, which is smaller


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inference_goes_on_after_what_is_not_finite(value, data, batches):
    data[0][SIZE * 9] = value
    results = []
    for jit in ("auto", False):
        model = made(jit_compile=jit)
        results.append((model.predict(data[0], SIZE, verbose=0), model.evaluate(*data, SIZE, verbose=0)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert np.isfinite(results[0][0][-1]).all()
    assert max(batches) == 8


@pytest.mark.parametrize("size", [1, SIZE])
def test_inference_of_samples_of_any_kind(size, data, batches):
    for stored in (
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.round(x).astype("i8"),
    ):
        x = stored(data[0])
        results = [made(jit_compile=jit).predict(x, size, verbose=0).tobytes() for jit in ("auto", False)]
        assert results[0] == results[1]
    assert max(batches) >= 8


def test_inference_with_python_in_each_batch(data, batches):
    results = []
    for jit in ("auto", False):
        model = made(doubled, jit)
        results.append(
            (model.predict(data[0], SIZE, verbose=0).tobytes(), model.evaluate(*data, SIZE, verbose=0))
        )
    assert results[0] == results[1]
    assert not batches


# ---- The native call


@pytest.fixture
def tapes(rng):
    """losses = relu(x); then y += 1 by a step of SGD."""
    x, rates, kept = rng.uniform(1, 2, 3).astype("f4"), np.array([1.0, 1.0, 0.0]), []
    w, dw = np.zeros(2, "f4"), np.full(2, -1, "f4")
    inputs = [x, rates]
    first = _backend.Tape(lambda: kept.append(ops.relu(x)), [], inputs)
    second = _backend.Tape(lambda: ops.sgd_step([w], [dw], rates=rates), [w, dw], inputs)
    w[...] = 0
    return [first.native, second.native], kept[0], w, rates


def test_inputs_for_all_steps_or_for_each(tapes, rng):
    launch = _backend.host().native.launch_steps
    played, losses, w, rates = tapes
    x, kept = rng.uniform(1, 2, (5, 3)).astype("f4"), np.empty((5, 3), "f4")
    assert launch(5, played, [x, rates], [losses], [kept]) == 5
    assert kept.tobytes() == x.tobytes()
    assert w.tolist() == [5, 5]
    assert (
        launch(5, played, [x[2], np.array([[1.0, 1.0, 0.0]] * 4 + [[2.0, 1.0, 0.0]])], [losses], [kept]) == 5
    )
    assert kept.tobytes() == x[[2] * 5].tobytes()
    assert w.tolist() == [11, 11]
    assert launch(0, played, [x[0], rates], [losses], [kept[:0]]) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_sum_that_is_not_finite_ends_it(tapes, value):
    launch = _backend.host().native.launch_steps
    played, losses, w, rates = tapes
    x, kept = np.ones((5, 3), "f4"), np.zeros((5, 3), "f4")
    x[2, 1] = value
    assert launch(5, played, [x, rates], [losses], [kept]) == 3
    assert w.tolist() == [2, 2]
    np.testing.assert_array_equal(kept, np.concatenate([x[:3], np.zeros((2, 3))]))


def test_one_tape_alone_goes_to_the_end(tapes):
    launch = _backend.host().native.launch_steps
    played, losses, _, rates = tapes
    x, kept = np.full((5, 3), np.nan, "f4"), np.zeros((5, 3), "f4")
    assert launch(5, played[:1], [x, rates], [losses], [kept]) == 5
    np.testing.assert_array_equal(kept, x)


def test_a_sum_of_large_losses_is_finite(tapes):
    launch = _backend.host().native.launch_steps
    played, losses, w, rates = tapes
    x = np.full((2, 3), np.finfo("f4").max)
    assert launch(2, played, [x, rates], [losses], [np.empty_like(x)]) == 2
    assert w.tolist() == [2, 2]


def test_tapes_of_other_inputs_are_refused(tapes):
    launch = _backend.host().native.launch_steps
    played, losses, _, rates = tapes
    longer = np.ones(4, "f4")
    other = _backend.Tape(lambda: ops.relu(longer), [], [longer, rates])
    with pytest.raises(ValueError, match="the tapes have different inputs"):
        launch(1, [played[0], other.native], [np.ones(3, "f4"), rates], [losses], [np.empty((1, 3), "f4")])


def test_wrong_arrays_are_refused(tapes):
    launch = _backend.host().native.launch_steps
    played, losses, w, rates = tapes
    x, kept = np.ones((5, 3), "f4"), np.empty((5, 3), "f4")
    with pytest.raises(
        ValueError, match=r"input 0 was recorded as float32 \(3,\), got float32 \(4, 3\) for 5 steps"
    ):
        launch(5, played, [x[:4], rates], [losses], [kept])
    with pytest.raises(
        ValueError, match=r"input 0 was recorded as float32 \(3,\), got float64 \(5, 3\) for 5 steps"
    ):
        launch(5, played, [x.astype("f8"), rates], [losses], [kept])
    with pytest.raises(TypeError, match="launch takes 2 inputs, got 1"):
        launch(5, played, [x], [losses], [kept])
    with pytest.raises(ValueError, match=r"5 results float32 \(3,\) do not fit into float32 \(4, 3\)"):
        launch(5, played, [x, rates], [losses], [kept[:4]])
    with pytest.raises(ValueError, match=r"5 results float32 \(3,\) do not fit into float64 \(5, 3\)"):
        launch(5, played, [x, rates], [losses], [kept.astype("f8")])
    with pytest.raises(ValueError, match="1 results, but 2 arrays to keep them"):
        launch(5, played, [x, rates], [losses], [kept, kept])
    with pytest.raises(ValueError, match="there is no tape, or no result"):
        launch(5, played, [x, rates], [], [])
    with pytest.raises(ValueError, match="there is no tape, or no result"):
        launch(5, [], [x, rates], [losses], [kept])
    whole = np.zeros(3, "i4")
    with pytest.raises(ValueError, match="the first result must be of floats"):
        launch(5, played, [x, rates], [whole], [np.empty((5, 3), "i4")])
    kept.flags.writeable = False
    with pytest.raises(ValueError, match="is read-only"):
        launch(5, played, [x, rates], [losses], [kept])
    assert not w.any()
