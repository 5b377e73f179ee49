"""fit with the training step recorded as a CUDA graph: the same bits as step by step, on the doubles of CuPy and the GPU."""

from __future__ import annotations

import warnings

import fake_cupy
import fastnn
import numpy as np
import pytest
from fastnn import callbacks, layers, losses, models, optimizers
from support import assert_same_bits

SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data(rng):
    return rng.integers(0, 256, (50, 6, 6, 2)).astype(np.uint8), rng.integers(0, 4, (50, 1))


def everything():
    return [
        layers.Rescaling(1 / 255, offset=-0.5, input_shape=(6, 6, 2)),
        layers.RandomFlip(),
        layers.RandomTranslation(0.2, 0.1, fill_mode="constant", fill_value=0.25),
        layers.RandomTranslation((0.0, 0.3), 0, interpolation="nearest"),
        layers.Conv2D(4, 3, activation="relu", padding="same"),
        layers.BatchNormalization(momentum=0.8),
        layers.MaxPooling2D(2),
        layers.Dropout(0.2),
        layers.Conv2D(4, 2, activation="relu"),  # with the next one as one op
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(5, activation="tanh"),
        layers.BatchNormalization(center=False, scale=False),
        layers.Dense(4),
    ]


def plain():
    return [layers.Input((6, 6, 2)), layers.Flatten(), layers.Dense(4)]


def trained(
    data,
    jit,
    make=everything,
    optimizer=optimizers.Adam,
    loss=SPARSE,
    metrics=("accuracy",),
    dtype="float32",
    **how,
):
    """A model after fit, and the run's history: 50 samples make three batches of 16 and one of 2."""
    fastnn.set_seed(5)
    model = models.Sequential(make(), dtype=dtype, device="cuda")
    model.compile(optimizer(), loss, metrics=list(metrics), jit_compile=jit)
    history = model.fit(*data, **{"epochs": 3, "batch_size": 16, "verbose": 0, **how}).history
    return model, history


def assert_same(a, b):
    (first, first_history), (second, second_history) = a, b
    np.testing.assert_equal(first_history, second_history)  # exactly, and NaN where there is NaN
    optimizer, other = first.optimizer, second.optimizer
    assert optimizer.iterations == other.iterations
    pairs = [(first.weights, second.weights), *((optimizer.slots[k], other.slots[k]) for k in other.slots)]
    for these, those in pairs:
        for x, y in zip(these, those, strict=True):
            assert_same_bits(x.get(), y.get())


OPTIMIZERS = {
    "adam": optimizers.Adam,
    "adamw-cosine": lambda: optimizers.Adam(
        optimizers.schedules.CosineDecay(0.01, 12, warmup_target=0.02, warmup_steps=3), weight_decay=0.05
    ),
    "sgd": optimizers.SGD,
    "sgd-momentum-decay": lambda: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(0.1, 1, 0.9), momentum=0.9, nesterov=True, weight_decay=0.01
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_bits_with_and_without(launches, data, optimizer, dtype):
    how = {
        "optimizer": OPTIMIZERS[optimizer],
        "dtype": dtype,
        "metrics": ["accuracy", losses_of_class_1],
        "class_weight": {1: 2.0},
        "validation_data": data,
        "sample_weight": np.linspace(0.5, 1.5, 50),
    }
    eager = trained(data, False, **how)
    assert not launches
    assert_same(trained(data, True, **how), eager)
    # Training and validation, each but for the first batch of 16 and the first of 2.
    assert len(launches) == 2 * (12 - 2)
    assert len(set(launches)) == 4


def losses_of_class_1(y_true, y_pred):
    return y_pred[:, 1] * (y_true == 1)


def test_evaluation(launches, data):
    """Also of weights that have changed since, and with a setting that has."""
    scores = []
    for jit in (True, False):
        model, _ = trained(data, jit, epochs=1)
        launches.clear()
        scores.append([model.evaluate(*data, batch_size=12, verbose=0)])
        assert len(launches) == (3 if jit else 0)  # 12, the second of which is recorded, 12, 12 and 2
        model.set_weights([w * 1.5 for w in model.get_weights()])
        model.get_layer(index=5).epsilon = 0.5
        scores[-1].append(model.evaluate(*data, batch_size=12, verbose=0, sample_weight=np.arange(50.0)))
        assert model.optimizer.iterations == 4
    assert scores[0] == scores[1]
    assert scores[0][0] != scores[0][1]


DENSE = {
    "mse": "mse",
    "categorical": losses.CategoricalCrossentropy(label_smoothing=0.1),
    "categorical-logits": losses.CategoricalCrossentropy(from_logits=True),
}


@pytest.mark.parametrize("loss", DENSE)
def test_dense_targets_in_their_order(launches, data, loss):
    x, labels = data
    data = x, np.eye(4, dtype=np.float32)[labels[:, 0]]
    how = {
        "loss": DENSE[loss],
        "metrics": ["accuracy", "top_k_categorical_accuracy"],
        "make": lambda: [*everything(), layers.Activation("softmax")],
        "shuffle": False,
    }
    assert_same(trained(data, "auto", **how), trained(data, False, **how))
    assert launches


def test_probabilities_of_labels(launches, data):
    how = {
        "loss": losses.SparseCategoricalCrossentropy(),
        "metrics": ["sparse_top_k_categorical_accuracy"],
        "make": lambda: [*plain(), layers.Activation("softmax")],
    }
    assert_same(trained(data, True, **how), trained(data, False, **how))
    assert launches


SETTINGS = {
    "dropout": lambda model, epoch: setattr(model.get_layer("dropout"), "rate", 0.2 * epoch),
    "batch-norm": lambda model, epoch: setattr(model.get_layer(index=5), "epsilon", 0.1 * (1 + epoch)),
    "optimizer": lambda model, epoch: setattr(model.optimizer, "beta_1", 0.9 - 0.1 * epoch),
    "loss": lambda model, epoch: setattr(model.loss, "label_smoothing", 0.1 * epoch),
    "learning-rate": lambda model, epoch: setattr(model.optimizer, "learning_rate", 0.01 / (1 + epoch)),
    "weights": lambda model, epoch: model.set_weights([w / 2 for w in model.get_weights()]),
    "slots": lambda model, epoch: model.optimizer.set_state(
        {**model.optimizer.get_state(), "slots": {}}, model.trainable_weights
    ),
    "seed": lambda model, epoch: setattr(model, "seed", epoch),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_callback_sets_at_an_epoch_holds(launches, data, setting):
    x, labels = data
    data = x, np.eye(4)[labels[:, 0]]
    results = []
    for jit, at_epoch in ((True, SETTINGS[setting]), (False, SETTINGS[setting]), (True, lambda *_: None)):
        loss = losses.CategoricalCrossentropy(from_logits=True)
        results.append(
            trained(data, jit, loss=loss, epochs=4, callbacks=Setter(at_epoch), validation_data=data)
        )
    assert_same(*results[:2])
    assert results[0][1] != results[2][1]
    assert launches


class Setter(callbacks.Callback):
    def __init__(self, at_epoch):
        self.at_epoch = at_epoch

    def on_epoch_begin(self, epoch, logs):
        self.at_epoch(self.model, epoch)


def test_what_a_callback_sets_at_a_batch_holds_from_the_next_step_on(launches, data):
    class Meddler(callbacks.Callback):
        def on_train_batch_begin(self, batch, logs):
            if batch == 2:
                self.model.optimizer.learning_rate = 0.01 / (1 + self.model.run.epoch)

        def on_train_batch_end(self, batch, logs):
            seen.append(dict(logs))
            if (self.model.run.epoch, batch) == (1, 1):
                self.model.optimizer.learning_rate = 0.05
                self.model.get_layer("dropout").rate = 0.5

    results, of_both = [], []
    for jit in (True, False):
        seen = []
        results.append(trained(data, jit, callbacks=Meddler()))
        of_both.append(seen)
    assert_same(*results)
    assert of_both[0] == of_both[1]
    assert len(of_both[0]) == 12
    assert launches


def test_a_plateau_lowers_the_learning_rate(launches, data):
    results, rates = [], []
    for jit in (True, False):
        plateau = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
        results.append(trained(data, jit, epochs=4, callbacks=plateau))
        rates.append(results[-1][0].optimizer.learning_rate)
    assert_same(*results)
    assert rates[0] == rates[1] < 0.001
    assert launches


class Interrupt(callbacks.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_begin(self, batch, logs):
        if self.model.optimizer.iterations == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 6, 9])
def test_a_run_resumed_in_an_epoch(launches, data, tmp_path, step):
    """The backup is older than the interrupt, or as old; the sums of its steps are in it."""

    class Interrupted(callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            if self.model.optimizer.iterations == step:
                raise RuntimeError("a power cut")

        def needs_batch_logs(self, batch):
            return False

    whole = trained(data, False)
    folder = tmp_path / "backup"
    backup = {"callbacks": [callbacks.BackupAndRestore(folder, save_freq=2)]}
    with pytest.raises(RuntimeError, match="a power cut"):
        trained(data, True, callbacks=[*backup["callbacks"], Interrupted()])
    assert (folder / "backup.safetensors").exists()
    assert_same(trained(data, True, **backup), whole)
    with pytest.raises(RuntimeError, match="a power cut"):
        trained(data, False, callbacks=[*backup["callbacks"], Interrupted()])
    assert_same(trained(data, True, **backup), whole)  # from a backup of the other way
    assert launches


def test_ctrl_c_leaves_a_backup_with_the_steps_done(launches, data, tmp_path):
    whole = trained(data, False)
    backup = callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(data, True, callbacks=[backup, Interrupt(7)])
    assert_same(trained(data, True, callbacks=[backup, Interrupt(-1)]), whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", ["adamw-cosine", "sgd-momentum-decay"])
def test_a_loss_that_is_not_finite_changes_nothing(launches, data, optimizer, value):
    """One sample is poisoned: its step is left out in each epoch, in the weights, the slots and the moving averages."""
    x, y = data
    x = x.astype(np.float64)
    x[17, 2, 3, 1] = value
    results, messages = [], []
    for jit in (True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(trained((x, y), jit, optimizer=OPTIMIZERS[optimizer], epochs=4))
        messages.append([(str(w.message), w.filename) for w in caught])
    assert_same(*results)
    assert messages[0] == messages[1]
    assert len(messages[0]) == 1
    assert "the loss is nan; such steps leave the weights as they were" in messages[0][0][0]
    assert messages[0][0][1] == __file__
    assert all(np.isfinite(w).all() for w in results[0][0].get_weights())
    assert results[0][0].optimizer.iterations == 16
    assert launches


def test_the_weights_from_before_such_a_step(launches, data):
    """Every batch is poisoned but for the first epoch's: nothing moves any more."""
    x, y = data
    clean = trained((x.astype(np.float64), y), True, epochs=1)[0]
    x = x.astype(np.float64)

    class Poison(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 1:
                self.model.run.data.x[...] = np.nan

        def on_epoch_end(self, epoch, logs):
            self.weights = self.model.get_weights()

    poison = Poison()
    with pytest.warns(RuntimeWarning, match=r"epoch 2, batch 1 \(step 5\): the loss is nan"):
        model, _ = trained((x, y), True, epochs=3, callbacks=poison)
    for a, b, c in zip(model.get_weights(), poison.weights, clean.get_weights(), strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)
    assert model.optimizer.iterations == 12


class Before(callbacks.Callback):
    def on_train_batch_begin(self, batch, logs):
        self.last = batch


class After(callbacks.Callback):
    def on_train_batch_end(self, batch, logs):
        self.last = batch


@pytest.mark.parametrize("other", [None, Before, After])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_terminate_on_nan(launches, data, capsys, tmp_path, batch, epoch, other):
    """Steps that were begun before the figures were there leave no trace: all is as after the first such step."""

    class Poison(callbacks.Callback):
        def on_epoch_begin(self, number, logs):
            if number == epoch:
                self.model.run.data.x[16 * batch] = np.nan

    results, printed, runs, seen = [], [], [], []
    for jit in (True, False):
        watch, backup = callbacks.TerminateOnNaN(), callbacks.BackupAndRestore(tmp_path / str(jit), 2, False)
        chosen = [Poison(), watch, backup, *([other()] if other else [])]
        x = data[0].astype(np.float64)
        results.append(trained((x, data[1]), jit, shuffle=False, epochs=4, callbacks=chosen))
        printed.append(capsys.readouterr().out)
        runs.append(backup.path.read_bytes())
        seen.append(chosen[-1].last)
        assert watch.report == f"Epoch {epoch + 1}, batch {batch + 1}: the loss is nan; training ends."
    assert_same(*results)
    assert results[0][0].optimizer.iterations == 4 * epoch + batch + 1
    assert printed[0] == printed[1] == watch.report + "\n"
    assert runs[0] == runs[1]
    assert seen[0] == seen[1]


def test_nobody_hears_of_a_batch_after_the_end(launches, data, capsys):
    class Fourth(callbacks.Callback):
        def needs_batch_logs(self, batch):
            return batch == 3

        def on_train_batch_end(self, batch, logs):
            if batch == 3:
                heard.append((batch, logs))

    x = data[0].astype(np.float64)
    x[16] = np.nan  # the second batch
    for jit in (True, False):
        heard = []
        trained((x, data[1]), jit, shuffle=False, callbacks=[callbacks.TerminateOnNaN(), Fourth()])
        assert not heard


def test_a_run_that_goes_on_all_the_same(launches, data, capsys):
    class Stubborn(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs):
            self.model.run.data.x[20] = np.nan if epoch == 1 else 0.0

        def on_epoch_end(self, epoch, logs):
            self.model.stop_training = False

    results = []
    for jit in (True, False):
        x = data[0].astype(np.float64)
        chosen = [Stubborn(), callbacks.TerminateOnNaN()]
        results.append(trained((x, data[1]), jit, shuffle=False, epochs=4, callbacks=chosen))
    assert_same(*results)
    assert results[0][0].optimizer.iterations == 3 * 4 + 2
    assert np.isfinite(results[0][1]["loss"]).tolist() == [True, False, True, True]


def test_nothing_is_waited_for_within_an_epoch(launches, data, monkeypatch, capsys, tmp_path):
    waits = []
    for name in ("get", "__float__", "__int__", "__bool__"):
        real = getattr(fake_cupy.ndarray, name)
        monkeypatch.setattr(
            fake_cupy.ndarray, name, lambda array, real=real, name=name: (waits.append(name), real(array))[1]
        )
    counts = []

    class Count(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs):
            waits.clear()

        def on_epoch_end(self, epoch, logs):
            counts.append(list(waits))

    watched = [Count(), callbacks.BackupAndRestore(tmp_path), callbacks.TerminateOnNaN()]
    trained(data, True, callbacks=watched, epochs=4, verbose=2, validation_data=data)
    assert counts[2:] == [["get", "get"]] * 2  # of training and of validation
    assert capsys.readouterr().out.count("Epoch") == 4


# ---- What cannot be recorded


class Looking(layers.Layer):
    """Looks at its input in Python."""

    def forward(self, x, training=False, drawn=()):
        if training and float(x.max()) > 1e30:
            raise ValueError
        return x * 1.0, None

    def backward(self, dy, saved, need_dx=True):
        return dy * 1.0, {}


class Excused(Looking):
    supports_jit = False


def hits_on_the_host(y_true, y_pred):
    return fake_cupy.asarray(y_pred.get().argmax(axis=1) == y_true.get())


class OwnRule(optimizers.Optimizer):
    def _step(self, ws, dws, rates):
        for w, dw in zip(ws, dws, strict=True):
            w *= rates[1]
            w -= (dw * rates[0]).astype(w.dtype)


def in_the_middle(layer):
    return lambda: [layers.Input((6, 6, 2)), layers.Conv2D(2, 3), layer(), layers.Flatten(), layers.Dense(4)]


OBSTACLES = {
    "layer 'looking'": ({"make": in_the_middle(Looking)}, "float"),
    "metric 'hits_on_the_host'": ({"metrics": [hits_on_the_host]}, "get"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_looks_at_results_is_named(launches, data, name):
    how, call = OBSTACLES[name]
    with pytest.raises(ValueError, match=rf"^jit_compile=True: {name} cannot be recorded .*\(.*: {call}\)$"):
        trained(data, True, **how)
    with pytest.warns(RuntimeWarning, match=rf"done without: {name} cannot be recorded") as caught:
        automatic = trained(data, "auto", **how)
    assert all(warning.filename == __file__ for warning in caught)
    assert not launches
    assert_same(automatic, trained(data, False, **how))


def test_what_asks_not_to_be_recorded(launches, data):
    for name, how in {
        "layer 'excused'": {"make": in_the_middle(Excused)},
        "optimizer 'own_rule'": {"make": plain, "optimizer": lambda: OwnRule(0.01)},
    }.items():
        with pytest.raises(
            ValueError, match=f"^jit_compile=True: {name} cannot be recorded, its supports_jit"
        ):
            trained(data, True, **how)
        assert_same(trained(data, "auto", **how), trained(data, False, **how))
    assert not launches


def test_a_step_that_fails_is_not_counted(cuda, data):
    def wrong(y_true, y_pred):
        return y_pred

    model = models.Sequential(plain(), device="cuda")
    model.compile("adam", SPARSE, metrics=[wrong])
    with pytest.raises(ValueError, match="expected 16 values"):
        model.fit(*data, batch_size=16, verbose=0)
    assert model.optimizer.iterations == 0


def test_the_switch(data):
    model = models.Sequential(plain())
    with pytest.raises(ValueError, match="jit_compile must be True, False or 'auto', got 'yes'"):
        model.compile("sgd", SPARSE, jit_compile="yes")
    model.compile("sgd", SPARSE, jit_compile=True)
    model.fit(*data, verbose=0)  # on the CPU it means nothing


# ---- The double


def test_the_double_computes_nothing_while_it_captures(cuda):
    xp = fake_cupy
    x, out = xp.asarray(np.arange(4.0)), xp.asarray(np.zeros(4))
    pool, stream = xp.MemoryPool(), xp.Stream(non_blocking=True)
    with xp.using_allocator(pool.malloc), stream:
        stream.begin_capture()
        y = x * 2
        out[1:] = y[1:]
        for wait in (y.get, lambda: float(y[0]), lambda: bool(y[0]), lambda: xp.asarray(np.ones(3))):
            with pytest.raises(RuntimeError, match="is capturing"):
                wait()
        graph = stream.end_capture()
    assert not out.get().any()
    for factor in (1, 3):
        x[...] = xp.asarray(np.arange(4.0) * factor)
        graph.launch()
        np.testing.assert_array_equal(out.get(), [0, 2 * factor, 4 * factor, 6 * factor])
    stream.begin_capture()
    with pytest.raises(AssertionError, match="handed out again"):
        stream.end_capture()
    del pool
    with pytest.raises(AssertionError, match="is gone"):
        graph.launch()
    with pytest.raises(RuntimeError, match="default"):
        xp.Stream().begin_capture()
