"""The layer API end to end: what the tutorial's user relies on, on tiny networks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import fastnn
import numpy as np
import pytest
from fastnn import callbacks, layers, losses, models, optimizers, reference
from support import assert_same_bits, floats

LOGITS = losses.SparseCategoricalCrossentropy(from_logits=True)


def small_model(**compile_options):
    model = models.Sequential(
        [
            layers.Rescaling(1 / 255, input_shape=(8, 8, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.1, 0.1),
            layers.Conv2D(5, (3, 3), activation="relu", padding="same"),
            layers.BatchNormalization(),
            layers.MaxPooling2D((2, 2)),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    model.compile(**{"optimizer": "adam", "loss": LOGITS, "metrics": ["accuracy"], **compile_options})
    return model


@pytest.fixture
def data(rng):
    return rng.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, (50, 1))


def seeded(**options):
    fastnn.set_seed(7)
    return small_model(**options)


def everything(model):
    return [*model.get_weights(), *(a for slot in model.optimizer.slots.values() for a in slot)]


def assert_same_model(actual, expected):
    for a, b in zip(everything(actual), everything(expected), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_seed_fixes_every_bit(data, threads):
    before = fastnn.get_num_threads()
    first = seeded()
    expected = first.fit(*data, epochs=2, batch_size=16, verbose=0, validation_data=data).history
    fastnn.set_num_threads(threads)
    try:
        second = seeded()
        actual = second.fit(*data, epochs=2, batch_size=16, verbose=0, validation_data=data).history
    finally:
        fastnn.set_num_threads(before)
    assert actual == expected
    assert set(actual) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert_same_model(second, first)


class Stop(Exception):
    """What stands for a crash."""


@pytest.mark.parametrize("at", [0, 1, 3, 4, 6, 9, 11])
def test_resuming_gives_the_bits_of_the_uninterrupted_run(data, tmp_path, at):
    """Killed in batch `at` of twelve, resumed from the last backup, mid-epoch ones included."""

    def run(folder, model, *more):
        watchers = [
            callbacks.EarlyStopping(monitor="loss", patience=5),
            callbacks.ReduceLROnPlateau(monitor="loss", patience=1, factor=0.5),
            callbacks.BackupAndRestore(folder, save_freq=2, delete_checkpoint=False),
        ]
        return model.fit(*data, epochs=3, batch_size=13, verbose=0, callbacks=[*watchers, *more]).history

    whole = seeded()
    expected = run(tmp_path / "whole", whole)
    seen = []

    def crash(batch, logs):
        seen.append(batch)
        if len(seen) == at + 1:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "cut", seeded(), callbacks.LambdaCallback(on_train_batch_end=crash))
    fastnn.set_seed(999)  # the resumed process may have drawn other seeds
    resumed = small_model() if at > 2 else seeded()  # nothing to resume from before the first backup
    assert run(tmp_path / "cut", resumed) == expected
    assert_same_model(resumed, whole)


def test_a_torn_backup_is_never_taken_for_whole(data, tmp_path):
    keep = callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    seeded().fit(*data, epochs=1, verbose=0, callbacks=[keep])
    whole = keep.path.read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        keep.path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"backup\.safetensors"):
            seeded().fit(
                *data,
                epochs=2,
                verbose=0,
                callbacks=[callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)],
            )


def test_uint8_float32_and_float64_images_train_alike(rng):
    x, y = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, 20)
    results = []
    for images in (x, x.astype(np.float32), x.astype(np.float64)):
        model = seeded()
        model.fit(images, y, epochs=1, verbose=0)
        results.append(model.get_weights())
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_same_bits(a, b)


def test_the_last_smaller_batch_counts_by_its_samples(data):
    model = seeded()
    x, y = data
    whole = model.evaluate(x, y, batch_size=50, verbose=0)
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=16, verbose=0), whole, rtol=1e-6)
    per_sample, _ = reference.softmax_cross_entropy(model.predict(x, verbose=0), y.reshape(-1))
    np.testing.assert_allclose(whole[0], per_sample.mean(), rtol=1e-5)
    accuracy = (model.predict(x, verbose=0).argmax(-1) == y.reshape(-1)).mean()
    np.testing.assert_allclose(whole[1], accuracy, rtol=1e-12)


def test_predict_from_many_threads_and_in_any_batches(data):
    model, x = seeded(), data[0]
    expected = model.predict(x, batch_size=50, verbose=0)
    assert_same_bits(model.predict(x, batch_size=7, verbose=0), expected)
    with ThreadPoolExecutor(8) as threads:
        for actual in threads.map(lambda _: model.predict(x, batch_size=16, verbose=0), range(40)):
            assert_same_bits(actual, expected)


def test_a_saved_model_is_the_same_model(data, tmp_path):
    model = seeded()
    model.fit(*data, epochs=1, verbose=0)
    model.save(tmp_path / "a.safetensors")
    model.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = models.load_model(tmp_path / "a.safetensors")
    assert_same_bits(loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0))
    assert loaded.evaluate(*data, verbose=0) == model.evaluate(*data, verbose=0)


@pytest.mark.parametrize("damage", [b"", b"not a model at all", None])
def test_a_damaged_model_file_is_refused_by_name(data, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    seeded().save(path)
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        models.load_model(path)


def test_weights_come_in_keras_order():
    model = seeded()
    shapes = [w.shape for w in model.get_weights()]
    assert shapes == [(3, 3, 3, 5), (5,), (5,), (5,), (5,), (5,), (80, 4), (4,)]
    kernel, bias, gamma, beta, mean, var, *_ = model.get_weights()
    assert np.abs(kernel).max() <= np.sqrt(6 / (27 + 45))  # glorot_uniform: fan_in 3*3*3, fan_out 3*3*5
    assert not bias.any()
    assert (gamma == 1).all()
    assert not beta.any()
    assert not mean.any()
    assert (var == 1).all()
    doubled = [2 * w for w in model.get_weights()]
    model.set_weights(doubled)
    for a, b in zip(model.get_weights(), doubled, strict=True):
        assert_same_bits(a, b)
    assert model.count_params() == sum(w.size for w in doubled)


def test_a_loss_that_becomes_nan_is_reported_with_its_step(data):
    x = data[0].astype(np.float32)
    x[30] = np.nan
    with pytest.warns(RuntimeWarning, match="epoch 1, batch 4 .*nan"):
        seeded().fit(x, data[1], epochs=2, batch_size=8, shuffle=False, verbose=0)
    model = seeded()
    history = model.fit(
        x, data[1], epochs=5, batch_size=8, shuffle=False, verbose=0, callbacks=[callbacks.TerminateOnNaN()]
    )
    assert len(history.epoch) <= 1


def test_class_weight_weights_the_loss(data):
    x, y = data
    model = seeded(optimizer=optimizers.SGD(0.0))
    plain, _ = reference.softmax_cross_entropy(model.predict(x, verbose=0), y.reshape(-1))
    weights = np.array([0.0, 2.0, 1.0, 5.0])[y.reshape(-1)]
    scored = model.evaluate(x, y, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(scored[0], (plain * weights).mean(), rtol=1e-5)


def test_one_line_an_epoch_where_the_output_is_no_terminal(data, capsys):
    seeded().fit(*data, epochs=3, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    assert all("images/s" in line and "loss: " in line and "accuracy: " in line for line in lines)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m, x, y: models.Sequential([layers.Dense(2)]).fit(x, y), (ValueError, RuntimeError)),
        (lambda m, x, y: m.fit(x, y[:-1], verbose=0), ValueError),
        (lambda m, x, y: m.fit(x[:, :7], y, verbose=0), ValueError),
        (lambda m, x, y: m.fit(x, y + 4, verbose=0), ValueError),
        (lambda m, x, y: m.fit(x, y.astype(float), verbose=0), (TypeError, ValueError)),
        (lambda m, x, y: m.fit(x[:0], y[:0], verbose=0), ValueError),
        (lambda m, x, y: m.fit(x, y, batch_size=0, verbose=0), ValueError),
        (lambda m, x, y: m.fit(x, y, validation_split=1.5, verbose=0), ValueError),
        (lambda m, x, y: m.predict(x.astype(complex), verbose=0), TypeError),
        (lambda m, x, y: m.set_weights([]), ValueError),
        (lambda m, x, y: m.compile(optimizer="adamant", loss=LOGITS), ValueError),
        (lambda m, x, y: optimizers.Adam(float("nan")), ValueError),
    ],
)
def test_wrong_use_is_refused(data, call, error):
    model = seeded()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(error):
        call(model, *data)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)


LAYERS = {
    "Conv2D": (lambda: layers.Conv2D(4, 3, padding="same", strides=2, activation="relu"), (6, 5, 3)),
    "MaxPooling2D": (lambda: layers.MaxPooling2D(2), (6, 5, 3)),
    "AveragePooling2D": (lambda: layers.AveragePooling2D(2, padding="same"), (5, 5, 3)),
    "GlobalAveragePooling2D": (lambda: layers.GlobalAveragePooling2D(), (5, 4, 3)),
    "Flatten": (lambda: layers.Flatten(), (3, 2, 2)),
    "Dense": (lambda: layers.Dense(7, activation="tanh"), (5,)),
    "Activation": (lambda: layers.Activation("sigmoid"), (5, 2)),
    "ReLU": (lambda: layers.ReLU(), (5, 2)),
    "Dropout": (lambda: layers.Dropout(0.4), (6, 3)),
    "BatchNormalization": (lambda: layers.BatchNormalization(), (4, 4, 3)),
    "Rescaling": (lambda: layers.Rescaling(0.5, offset=-1), (4, 3)),
    "RandomFlip": (lambda: layers.RandomFlip("horizontal"), (4, 5, 2)),
    "RandomTranslation": (lambda: layers.RandomTranslation(0.3, 0.2), (6, 5, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pure_and_survive_their_config(rng, name):
    make, shape = LAYERS[name]
    layer = make()
    layer.build(shape, np.dtype(np.float64), np.random.default_rng(1))
    state = {key: value for key, value in vars(layer).items() if not isinstance(value, dict)}
    x = floats(rng, (3, *shape), np.float64)
    y, saved = layer.forward(x, True, layer.draw(np.random.default_rng(5), x.shape))
    again, _ = layer.forward(x, True, layer.draw(np.random.default_rng(5), x.shape))
    assert_same_bits(again, y)
    assert y.shape == (3, *layer.compute_output_shape(shape))
    dy = floats(rng, y.shape, np.float64)
    dx, grads = layer.backward(dy, saved)
    assert dx.shape == x.shape
    assert set(grads) == set(layer.params)
    assert {key: value for key, value in vars(layer).items() if not isinstance(value, dict)} == state
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


def test_dropout_scales_what_it_keeps(rng):
    layer = layers.Dropout(0.25)
    x = np.ones((1000, 10), np.float32)
    y, _ = layer.forward(x, True, layer.draw(np.random.default_rng(0), x.shape))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.70 < (y > 0).mean() < 0.80  # 0.75, 10,000 draws: ten standard deviations
    assert layer.forward(x)[0] is x or (layer.forward(x)[0] == x).all()


@pytest.mark.parametrize("mode", ["horizontal", "vertical", "horizontal_and_vertical"])
def test_flips_mirror_the_samples_that_were_drawn(rng, mode):
    layer = layers.RandomFlip(mode)
    x = floats(rng, (40, 4, 5, 2), np.float32)
    y, _ = layer.forward(x, True, layer.draw(np.random.default_rng(0), x.shape))
    coins = np.random.default_rng(0).random((2, 40)) < 0.5
    for image, flipped, down, across in zip(x, y, *coins, strict=True):
        expected = image[::-1] if down and "vertical" in mode else image
        assert_same_bits(flipped, expected[:, ::-1] if across and "horizontal" in mode else expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fill_mode", ["reflect", "wrap", "constant", "nearest"])
def test_translations_read_between_pixels(rng, fill_mode, interpolation):
    """Beside pixels read one by one at their distance, in an image that goes on beyond its edges."""
    layer = layers.RandomTranslation(
        (-0.9, 0.9), (-0.3, 0.6), fill_mode=fill_mode, fill_value=0.5, interpolation=interpolation
    )
    x = floats(rng, (6, 5, 4, 2), np.float64)
    y, _ = layer.forward(x, True, layer.draw(np.random.default_rng(0), x.shape))
    parts = np.random.default_rng(0)
    downs, acrosses = parts.uniform(-0.9, 0.9, 6) * 5, parts.uniform(-0.3, 0.6, 6) * 4
    # np.pad's names for what lies beyond the edge.
    mode = {"reflect": "symmetric", "nearest": "edge"}.get(fill_mode, fill_mode)
    options = {"constant_values": 0.5} if fill_mode == "constant" else {}

    def shifted(lines, pixels):
        room = len(lines) + 1
        beyond = np.pad(lines, [(room, room), (0, 0), (0, 0)], mode, **options)
        at = np.arange(len(lines)) - pixels + room
        if interpolation == "nearest":
            return beyond[np.floor(at + 0.5).astype(int)]
        first = np.floor(at).astype(int)
        after = (at - first)[:, None, None]
        return beyond[first] * (1 - after) + beyond[first + 1] * after

    for image, moved, down, across in zip(x, y, downs, acrosses, strict=True):
        expected = shifted(shifted(image, down).swapaxes(0, 1), across).swapaxes(0, 1)
        np.testing.assert_allclose(moved, expected, rtol=1e-13, atol=1e-13)


def test_moving_statistics_are_keras(rng):
    layer = layers.BatchNormalization()
    layer.build((3,), np.dtype(np.float64), rng)
    x = floats(rng, (8, 3), np.float64)
    _, saved = layer.forward(x, training=True)
    assert not layer.state["moving_mean"].any()  # forward is pure
    layer.update_state(saved)
    np.testing.assert_allclose(layer.state["moving_mean"], 0.01 * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(layer.state["moving_variance"], 0.99 + 0.01 * x.var(0), rtol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("options", [{}, {"padding": "same", "strides": 2, "use_bias": False}])
def test_convolution_and_pool_are_computed_as_one(rng, activation, options):
    """The same output to the bit, gradients up to the order of their sums."""
    pool = {"pool_size": (2, 3), "strides": (2, 2), "padding": "same"}
    row = [layers.Conv2D(17, 3, activation=activation, **options), layers.MaxPooling2D(**pool)]
    model = models.Sequential([layers.Input((19, 16, 5)), *row], dtype="float64")
    (block,) = model.blocks
    assert type(block).__name__ == "ConvPool"
    x = rng.standard_normal((4, 19, 16, 5))
    y, saved = model.forward(x, training=True)
    between, of_conv = row[0].forward(x, training=True)
    expected, of_pool = row[1].forward(between, training=True)
    assert y.tobytes() == expected.tobytes()
    dy = rng.standard_normal(y.shape)
    dx, grads = model.backward(dy, saved)
    dx_expected, expected_grads = row[0].backward(row[1].backward(dy, of_pool)[0], of_conv)
    np.testing.assert_allclose(dx, dx_expected, rtol=0, atol=1e-12)
    assert len(grads) == len(expected_grads)
    for grad, wanted in zip(grads, expected_grads.values(), strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-11)


def test_only_what_is_the_same_is_computed_as_one():
    class Other(layers.MaxPooling2D):
        pass

    conv, pool = layers.Conv2D, layers.MaxPooling2D
    apart = [
        [conv(3, 3, activation="tanh"), pool()],
        [conv(3, 3), layers.AveragePooling2D()],
        [conv(3, 3), layers.Dropout(0.1), pool()],
        [conv(3, 3), Other()],
        [conv(3, 3), pool(16)],
        [pool(), conv(3, 3)],
    ]
    for row in apart:
        assert models.Sequential(row).blocks == row
    model = models.Sequential([conv(3, 3), pool(), conv(3, 3, activation="relu"), pool(), layers.Flatten()])
    assert [type(block).__name__ for block in model.blocks] == ["ConvPool", "ConvPool", "Flatten"]
    model.add(layers.Dense(2))
    assert len(model.blocks) == 4


def test_the_gradient_of_a_whole_network(rng):
    """Every parameter of a small network against central differences of its loss, in float64."""
    fastnn.set_seed(3)
    model = models.Sequential(
        [
            layers.Conv2D(2, 3, activation="tanh", input_shape=(5, 5, 2)),
            layers.AveragePooling2D(3),
            layers.Flatten(),
            layers.Dense(3),
        ],
        dtype="float64",
    )
    model.compile("sgd", LOGITS)
    x, y = floats(rng, (4, 5, 5, 2), np.float64), rng.integers(0, 3, 4)
    loss, step = LOGITS, 1e-5
    start = model.get_weights()
    sgd = optimizers.SGD(1.0)
    model.compile(sgd, loss)
    model.train_on_batch(x, y)
    analytic = [
        a - b for a, b in zip(start, model.get_weights(), strict=True)
    ]  # lr 1: the step is the gradient
    for k, weight in enumerate(start):
        for index in list(np.ndindex(weight.shape))[:: max(1, weight.size // 7)]:
            values = []
            for sign in (1, -1):
                moved = [w.copy() for w in start]
                moved[k][index] += sign * step
                model.set_weights(moved)
                values.append(loss(y, model(x)))
            assert abs((values[0] - values[1]) / (2 * step) - analytic[k][index]) < 1e-8
