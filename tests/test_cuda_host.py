"""The host execution of CUDA kernels is itself put to the test: by kernels with a planted mistake."""

from __future__ import annotations

import os
import subprocess
import sys

import fastnn
import numpy as np
import pytest
from fastnn import _backend, ops, reference, runs
from fastnn.losses import SparseCategoricalCrossentropy
from support import assert_identical, floats

LOGITS = SparseCategoricalCrossentropy(from_logits=True)
native = _backend._native("cuda_host")
SANITIZER = native.sanitizer
right = [1.0] * 64

WRONG_ANSWER = ["missing_barrier", "unwritten_read", "early_read", "fragment_layout", "matrix_layout"]
ERRORS = {
    "divergent_barrier": r"__syncthreads|barrier.*faults.cu:\d+",
    "two_barriers": r"wait at different barriers: one at .*faults.cu:\d+.*, one at .*faults.cu:\d+",
    "partial_shuffle": r"faults.cu:\d+",
    "misaligned_matrix": r"not aligned to 16 bytes: .*ptx.cuh:\d+",
    "too_much_shared": "takes 272 bytes of shared memory, launched with 256",
}
REPORTS = {  # what only a sanitizer sees, or sees as well
    "shared_overflow": "address",
    "global_overflow": "address",
    "missing_barrier": "thread",
    "block_race": "thread",
}


@pytest.mark.parametrize("name", native.faults())
def test_without_its_mistake_a_kernel_passes(name):
    for seed in range(1, 6):
        native.set_order_seed(seed)
        assert native.run_fault(name, True) == right
    native.set_order_seed(1)


@pytest.mark.parametrize("name", WRONG_ANSWER)
@pytest.mark.skipif("thread" in SANITIZER, reason="ThreadSanitizer reports it instead")
def test_a_mistake_gives_wrong_numbers(name):
    for seed in range(1, 6):
        native.set_order_seed(seed)
        assert native.run_fault(name, False) != right
    native.set_order_seed(1)


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_an_error_that_names_the_line(name):
    for seed in range(1, 6):
        native.set_order_seed(seed)
        with pytest.raises(RuntimeError, match=ERRORS[name]):
            native.run_fault(name, False)
    native.set_order_seed(1)
    assert native.run_fault(name, True) == right  # and the next launch is none the worse


@pytest.mark.skipif("address" in SANITIZER, reason="AddressSanitizer ends the process first")
def test_a_store_behind_shared_memory_is_an_error():
    with pytest.raises(RuntimeError, match="wrote behind a shared array of 256 bytes"):
        native.run_fault("shared_overflow", False)


@pytest.mark.parametrize("name", REPORTS)
def test_a_sanitizer_reports(name):
    kind = REPORTS[name]
    if kind not in SANITIZER:
        pytest.skip(f"needs a build with FASTNN_SANITIZE={kind}; this one has {SANITIZER or 'none'}")
    # Time after time, because the second of the host's threads may come too late for a launch to race in it.
    program = (
        "from fastnn import _cuda_host as m\n"
        "m.set_num_threads(2)\n"
        f"for _ in range(200): m.run_fault({name!r}, False)"
    )
    variable = f"{kind[0].upper()}SAN_OPTIONS"  # the report to stderr, whatever the caller wants
    options = {variable: os.environ.get(variable, "") + ":log_path=stderr"}
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **options}, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert ("heap-buffer-overflow" if kind == "address" else "data race") in run.stderr
    assert name in run.stderr


def test_an_unknown_fault():
    with pytest.raises(ValueError, match="no planted fault named 'x'"):
        native.run_fault("x", False)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_factors_are_rounded_to_the_bit(on_host, precision):
    """With one factor 1 a product is the other one, rounded: ties, subnormals, infinities and NaN included."""
    bits = np.array(
        [
            *(0x3F800000, 0x3F801000, 0x3F801001, 0x3F803000, 0x3F800FFF, 0x3F808000, 0x3F808001, 0x3F818000),
            *(0x00000001, 0x00001000, 0x007FFFFF, 0x7F7F0000, 0x7F800000, 0x7FC00000, 0x7F800001, 0x80000000),
        ],
        np.uint32,
    )
    a = np.concatenate([bits.view(np.float32), -bits.view(np.float32)]).reshape(-1, 1)
    a = np.concatenate([a, np.random.default_rng(1).standard_normal((200, 1)).astype(np.float32)])
    one = np.ones((1, 1), np.float32)
    with on_host("cuda_host"):
        assert_identical(
            ops.gemm(a, one, precision=precision),
            reference.gemm(a, one, precision=precision).astype(np.float32),
        )


def test_training_follows_the_cpu(on_host, rng):
    """The tutorial's network, some steps of Adam on small batches: the same losses up to rounding, which training amplifies."""
    x, y = 255 * floats(rng, (24, 32, 32, 3)), rng.integers(0, 10, 24)  # the network rescales
    losses = {}
    for name in ("cpu", "cuda_host"):
        with on_host(name):
            fastnn.set_seed(3)
            model = runs.tutorial_model()
            model.compile("adam", LOGITS)
            losses[name] = [model.train_on_batch(x[i : i + 4], y[i : i + 4]) for i in range(0, 24, 4)]
    np.testing.assert_allclose(losses["cuda_host"], losses["cpu"], rtol=1e-4)
    assert losses["cuda_host"] != losses["cpu"]  # another order of summation: it was another backend
