#!/usr/bin/env bash
# What a machine with a GPU has to say of this checkout, in one command and without a network:
#
#     bash bench/device_check.sh OUT [CIFAR-10 PATH [SECONDS]]
#
# Builds for the GPU that is there, runs the whole test suite with a missing GPU as a failure, the op tests under
# compute-sanitizer's memcheck and racecheck, every gradient check, and trains the tutorial's network (on CIFAR-10 if a path
# is given, for `fastnn train --data`) twice, to the same bits. The time that is left of SECONDS, 530 at first, goes into
# bench/run.py, against those of PyTorch, CuPy and JAX that are there: results.json and .md in OUT/bench, and at last in
# OUT/bench-compile, renewed after each case.
# Needs python3 with NumPy, CuPy, pytest, hypothesis, pybind11, scikit-build-core, CMake 3.26 and Ninja; nvcc;
# compute-sanitizer; uses pytest-xdist if it is there. OUT gets a log of each step and summary.md. Exit status: how many steps
# failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: bash bench/device_check.sh OUT [CIFAR-10 PATH [SECONDS]]}" && cd "$1" && pwd)
data=${2:-}
seconds=${3:-530}

# step NAME SECONDS COMMAND...: runs it, logs it, and takes its last line into the summary.
step() {
  local name=$1 limit=$2 begin=$SECONDS status=passed rc=0
  timeout -k 5 "$limit" "${@:3}" >"$out/$name.log" 2>&1 || rc=$?
  case $rc in
    0) ;;
    124 | 137) status="stopped after $limit s" ;;
    *) status="failed (exit status $rc)" ;;
  esac
  echo "| $name | $status | $((SECONDS - begin)) s | $(tail -n 1 "$out/$name.log" | tr '|' '/' | cut -c1-200) |" | tee -a "$out/summary.md"
}

architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[ -n "$architecture" ] || { echo "device_check: nvidia-smi sees no GPU" >&2; exit 1; }
{
  echo "# Device check"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader | sed 's/^/- GPU, driver, memory, clock: /'
  echo "- $(nvcc --version | grep release)"
  echo "- $(python3 -c 'import sys, numpy, cupy; print("Python", sys.version.split()[0], "NumPy", numpy.__version__, "CuPy", cupy.__version__)')"
  echo "- commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  echo
  echo "| step | | time | last line |"
  echo "| --- | --- | --- | --- |"
} | tee "$out/summary.md"

site=$PWD/build/device/site  # kept: a second check of a changed checkout compiles what changed
rm -rf "$site"
export PYTHONPATH=$site FASTNN_REQUIRE_CUDA=1
step build 150 python3 -m pip install -q --no-build-isolation --no-deps --no-index --target "$site" -C build-dir=build/device \
  -C cmake.define.FASTNN_CUDA=ON -C cmake.define.FASTNN_CUDA_ARCHITECTURES="$architecture" .
[ -d "$site/fastnn" ] || { tail -n 40 "$out/build.log"; echo "device_check: without a build there is nothing to check" >&2; exit 1; }
step info 10 python3 -m fastnn info
# These are not timed, and so share the machine.
pytest=(python3 -m pytest -q -p no:cacheprovider -p no:benchmark)
python3 -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) / 2))") || parallel=()
step tests 150 "${pytest[@]}" "${parallel[@]}" &
op_tests=(tests/test_gemm.py tests/test_conv2d.py tests/test_pool2d.py tests/test_conv_pool.py tests/test_activation.py tests/test_loss.py
          tests/test_norm.py tests/test_optimizer_steps.py)
# The sanitizer slows kernels down by far: one case of each kind.
for tool in memcheck racecheck; do
  step "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all "${pytest[@]}" \
    -k "cuda and not cuda_host and float32 and not many and not 1409" "${op_tests[@]}" &
done
step gradcheck 100 python3 -m fastnn gradcheck --device cuda &
wait
for run in first second; do
  step "train-$run" 30 python3 -m fastnn train ${data:+--data "$data"} --device cuda --epochs 2 --seed 0 --out "$out/train-$run"
done
step graph 60 python3 - <<'EOF'
# The tutorial's network with its step recorded as a CUDA graph and without: the same bits, and the images/s of both.
import time
import fastnn, numpy as np
from fastnn import losses, runs

rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (20_000, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 20_000)
for augment in (True, False):
    found, speed = [], []
    for jit in (True, False):
        fastnn.set_seed(0)
        model = runs.tutorial_model(10, flip=augment, shift=augment, device="cuda")
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], jit_compile=jit)
        model.fit(x[:1000], y[:1000], batch_size=48, epochs=2, verbose=0)
        begin = time.perf_counter()
        history = model.fit(x, y, verbose=0).history
        speed.append(len(x) / (time.perf_counter() - begin))
        found.append((history, [w.tobytes() for w in model.get_weights()]))
    assert found[0] == found[1], "other bits with the graph than without"
print(f"same bits; {speed[0]:,.0f} images/s with the graph, {speed[1]:,.0f} without")
EOF
step same-bits 10 cmp "$out/train-first/model.safetensors" "$out/train-second/model.safetensors"

# Last, for as long as there is time, the cases that matter most first. torch.compile takes a minute for each of the network's,
# and so comes after all others.
bench() {  # NAME CONTENDERS CASE...
  local left=$((seconds - SECONDS))
  if [ $left -lt 40 ]; then
    echo "| $1 | left out: no time | 0 s | |" | tee -a "$out/summary.md"
  else
    step "$1" $left python3 bench/run.py --device cuda --contenders "$2" --limit $((left - 30)) --rounds 9 --out "$out/$1" \
      --title "fastnn on a GPU, beside other libraries" "${@:3}"
  fi
}
if grep -qE '^\| (info|train-first|graph) \| (failed|stopped)' "$out/summary.md"; then
  echo "| bench | left out: nothing to time | 0 s | |" | tee -a "$out/summary.md"
else
  bench bench fastnn,torch,torch-channels-last,torch-graph,cupy,jax train_step/tutorial-n32 train_step/tutorial-n128 inference \
    gemm resnet layers-32 skinny precision layers-128 optimizer pool activation norm
  bench bench-compile fastnn,torch-compile train_step/tutorial-n32 train_step/tutorial-n128 inference
fi

failed=$(grep -cE '^\| [^|]+ \| (failed|stopped)' "$out/summary.md")
echo "$failed steps failed"
exit "$failed"
