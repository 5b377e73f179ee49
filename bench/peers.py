"""Other libraries, each in its natural layout, as libraries of fastnn.bench. Nothing heavy is imported before it is used.

A contender's name is a library and its variants: `torch-channels-last-fused-tuned`. What the variants mean stands in
`VARIANTS`; `ENVIRONMENT` has what must be set before a process starts. A method is named after a family of cases, takes the
case, the pass and the inputs, and gives a call and how its results become NHWC and HWIO arrays. Checks and timing are
fastnn.bench.timing's.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform

import numpy as np
from fastnn.bench import kernels, networks
from fastnn.bench.timing import FLUSH_BYTES, Prepared, Unsupported, event_clock, step_clock, wall_clock

# What a contender is measured at where nothing else is asked for, by device.
DEFAULT = {
    "cpu": [
        "fastnn",
        "fastnn-winograd",
        "torch",
        "torch-fused",
        "torch-channels-last",
        "torch-channels-last-fused",
        "torch-channels-last-fused-tuned",
        "torch-compile",
        "torch-compile-tuned",
        "tensorflow",
        "keras",
        "jax",
        "numpy",
        "onnxruntime",
        "openvino",
    ],
    "cuda": [
        "fastnn",
        "torch",
        "torch-channels-last",
        "torch-compile",
        "torch-graph",
        "cupy",
        "jax",
    ],
}
VARIANTS = {
    "channels-last": "images and filters in channels-last memory format",
    "compile": "the network through torch.compile; Adam is fused",
    "fused": "torch.optim.Adam(fused=True)",
    "graph": "the step captured by hand into a CUDA graph and replayed; Adam is fused",
    "one-thread": "on one thread of the CPU: what the others gain",
    "tuned": "glibc's malloc told to keep freed blocks of any size, instead of giving them back to the system",
    "winograd": 'fastnn with precision="winograd"',
}
# glibc's mallopt(3). Without it PyTorch takes page faults for its activations at each step.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
# Families that a variant has something to say about; a contender without a variant takes all that its library has.
ONLY = {
    "channels-last": {
        "conv2d",
        "conv2d_max_pool2d",
        "max_pool2d",
        "avg_pool2d",
        "batch_norm",
        "inference",
        "train_step",
    },
    "fused": {"train_step", "adam_step"},
    "compile": {"train_step", "inference"},
    "graph": {"train_step", "inference"},
    "tuned": {"train_step"},
    "winograd": {"conv2d", "conv2d_max_pool2d", "train_step", "inference"},
}


def split(name: str) -> tuple[str, frozenset[str]]:
    """The library and the variants of a contender's name; ValueError where there is no such thing."""
    library, _, rest = name.partition("-")
    variants, rest = set(), f"-{rest}" if rest else ""
    while rest:
        found = next((v for v in VARIANTS if rest == f"-{v}" or rest.startswith(f"-{v}-")), None)
        if found is None:
            raise ValueError(
                f"contender {name!r}: {rest[1:]!r} is none of the variants {', '.join(VARIANTS)}"
            )
        variants.add(found)
        rest = rest[len(found) + 1 :]
    if library not in LIBRARIES:
        raise ValueError(f"contender {name!r}: {library!r} is none of {', '.join(LIBRARIES)}")
    for variant in variants - {"one-thread"}:
        if library != ("fastnn" if variant == "winograd" else "torch"):
            raise ValueError(f"contender {name!r}: {library} has no variant {variant!r}")
    return library, frozenset(variants)


def wanted(name: str, family: str) -> bool:
    """Whether the contender is worth running for this family of cases."""
    library, variants = split(name)
    if any(family not in ONLY[v] for v in variants if v in ONLY):
        return False
    return library == "fastnn" or getattr(LIBRARIES[library], family, None) is not None


def threads_of(name: str, threads: int) -> int:
    """How many threads a contender has in a run with so many."""
    return 1 if "one-thread" in split(name)[1] else threads


def environment(name: str, threads: int) -> dict[str, str | None]:
    """Environment of a contender's process; None removes a variable."""
    library, variants = split(name)
    count = str(threads)
    env: dict[str, str | None] = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count
    )
    env |= {"TF_NUM_INTRAOP_THREADS": count, "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if library == "numpy":  # set for an old processor, they slow a current OpenBLAS down
        env |= {"OPENBLAS_CORETYPE": None, "OPENBLAS_L2_SIZE": None}
    if "tuned" in variants:
        env |= TUNED
    return env


def library(name: str, device: str, threads: int):
    """The library of a contender, imported and set to this number of threads."""
    kind, variants = split(name)
    if kind == "fastnn":
        from fastnn.bench.own import Fastnn

        return Fastnn(device, threads, "winograd" if "winograd" in variants else "float32")
    return LIBRARIES[kind](variants, device, threads)


class Peer:
    """Finds the method of a case's family, and times by the processor's clock."""

    devices: tuple[str, ...] = ("cpu",)

    def __init__(self, variants: frozenset[str], device: str, threads: int) -> None:
        self.variants, self.device, self.threads = variants, device, threads
        if device not in self.devices:
            raise ValueError(f"{type(self).__name__} is not measured with --device {device}")
        self.load()

    def load(self) -> None:
        """Import and set up."""

    def describe(self) -> dict[str, str]:
        return {"python": platform.python_version(), "numpy": np.__version__}

    def clock(self, case):
        """How a case's calls are timed."""
        return wall_clock

    def prepare(self, case, which, inputs):
        method = getattr(self, case.family.name, None)
        if method is None:
            raise Unsupported(f"no bench of {type(self).__name__} for {case.family.name}")
        if case.precision != "float32" and self.device == "cpu":
            raise Unsupported(f"{case.precision} is for GPUs")
        return Prepared(*method(case, which, inputs), self.clock(case))


class NumPy(Peer):
    """OpenBLAS, as NumPy's wheels carry it."""

    def describe(self):
        told = super().describe()
        try:
            from threadpoolctl import threadpool_info

            blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            told["blas"] = "; ".join(
                f"{p['internal_api']} {p['version']} ({p.get('architecture')}), {p['num_threads']} threads"
                for p in blas
            )
        except ImportError:
            told["blas"] = "not told: threadpoolctl is not installed"
        return told

    def gemm(self, case, which, i):
        a, b = i["a"], i["b"]
        a, b = (a.T if case["t"][0] == "t" else a), (b.T if case["t"][1] == "t" else b)
        return lambda: a @ b, lambda y: [y]

    def rescale(self, case, which, i):
        x, rows, scale = i["x"], i["rows"], np.float32(case.family.scale)
        return lambda: x.take(rows, axis=0) * scale, lambda y: [y]


def _nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


class Torch(Peer):
    """PyTorch: oneDNN and MKL on the CPU, cuDNN and cuBLAS on a GPU. There, float32 is float32, for convolutions too."""

    devices = ("cpu", "cuda")

    def load(self):
        import torch

        self.torch, self.dtype = torch, torch.float32
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("this PyTorch sees no GPU: install its CUDA build")
            self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        elif "graph" in self.variants:
            raise ValueError("CUDA graphs are for --device cuda")
        torch.set_num_threads(self.threads)
        self.format = torch.channels_last if "channels-last" in self.variants else torch.contiguous_format

    def describe(self):
        torch = self.torch
        return {
            **super().describe(),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "malloc": "tuned" if "MALLOC_MMAP_THRESHOLD_" in os.environ else "default",
            **self._gpu(),
        }

    def _gpu(self):
        torch = self.torch
        if self.device == "cpu":
            return {}
        name, cudnn = torch.cuda.get_device_name(), torch.backends.cudnn.version()
        return {"gpu": name, "cuda": str(torch.version.cuda), "cudnn": str(cudnn)}

    def prepare(self, case, which, inputs):
        tf32 = case.precision == "tf32"
        self.torch.backends.cudnn.allow_tf32 = self.torch.backends.cuda.matmul.allow_tf32 = tf32
        self.dtype = self.torch.bfloat16 if case.precision == "bfloat16" else self.torch.float32
        return super().prepare(case, which, inputs)

    def clock(self, case):
        torch = self.torch
        if self.device == "cpu":
            return super().clock(case)
        if case.family.whole:
            return step_clock(lambda _: torch.cuda.synchronize())

        def elapsed_ms(begin, end):
            end.synchronize()
            return begin.elapsed_time(end)

        return event_clock(lambda: torch.cuda.Event(enable_timing=True), elapsed_ms, self.flushed.zero_)

    # ------------------------------------------------------------------ to and fro

    def flat(self, x):
        x = self.torch.from_numpy(x).to(self.device)
        return x.to(self.dtype) if x.dtype == self.torch.float32 else x

    def image(self, x):
        """NHWC to NCHW of the contender's memory format."""
        x = self.flat(x).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.format)

    def filter(self, w):
        """HWIO to OIHW, of the contender's memory format."""
        w = self.flat(w).permute(3, 2, 0, 1)
        return w.contiguous(memory_format=self.format)

    @staticmethod
    def back(y):
        """NumPy's, of whatever it is; images become NHWC."""
        y = y.detach().float()
        return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).cpu().numpy()

    def _no_grad(self, call):
        def inner():
            with self.torch.inference_mode():
                return call()

        return inner

    # ------------------------------------------------------------------ ops

    def gemm(self, case, which, i):
        a, b = self.flat(i["a"]), self.flat(i["b"])
        a, b = (a.T if case["t"][0] == "t" else a), (b.T if case["t"][1] == "t" else b)
        return self._no_grad(lambda: a @ b), lambda y: [self.back(y)]

    def conv2d(self, case, which, i):
        x, w, b, dy = self.image(i["x"]), self.filter(i["w"]), self.flat(i["b"]), self.image(i["dy"])
        u, p = case["u"], case["p"]
        if which == "forward":
            conv = self.torch.conv2d
            return self._no_grad(lambda: conv(x, w, b, stride=u, padding=p)), lambda y: [self.back(y)]
        mask = [True, False, False] if which == "backward_x" else [False, True, True]
        backward, k = self.torch.ops.aten.convolution_backward, [case["k"]]

        def call():
            return backward(dy, x, w, k, [u, u], [p, p], [1, 1], False, [0, 0], 1, mask)

        if which == "backward_x":
            return self._no_grad(call), lambda y: [self.back(y[0])]
        return self._no_grad(call), lambda y: [
            y[1].permute(2, 3, 1, 0).float().cpu().numpy(),
            self.back(y[2]),
        ]

    def conv2d_max_pool2d(self, case, which, i):
        torch, aten, q = self.torch, self.torch.ops.aten, [case["q"]] * 2
        x, w, b, dy = self.image(i["x"]), self.filter(i["w"]), self.flat(i["b"]), self.image(i["dy"])
        p = [case["p"]] * 2
        between = lambda: torch.conv2d(x, w, b, padding=p).relu_()  # noqa: E731
        if which == "forward":
            return self._no_grad(lambda: torch.max_pool2d(between(), q)), lambda y: [self.back(y)]
        # Places of the winners in the map between; where ReLU lets no gradient through, any place will do.
        positions = np.where(i["argmax"] < case["q"] ** 2, i["argmax"], 0).astype(np.int64)
        rows = np.arange(positions.shape[1])[:, None, None] * case["q"] + positions // case["q"]
        cols = np.arange(positions.shape[2])[:, None] * case["q"] + positions % case["q"]
        with torch.no_grad():
            y = between()
        places = rows * y.shape[3] + cols
        index = self.image(places.astype(np.float32)).to(torch.int64)
        mask = [True, False, False] if which == "backward_x" else [False, True, True]

        def call():
            d = aten.max_pool2d_with_indices_backward(dy, y, q, q, [0, 0], [1, 1], False, index)
            d = aten.threshold_backward(d, y, 0)
            return aten.convolution_backward(d, x, w, [case["k"]], [1, 1], p, [1, 1], False, [0, 0], 1, mask)

        if which == "backward_x":
            return self._no_grad(call), lambda y: [self.back(y[0])]
        return self._no_grad(call), lambda y: [
            y[1].permute(2, 3, 1, 0).float().cpu().numpy(),
            self.back(y[2]),
        ]

    def max_pool2d(self, case, which, i):
        x, dy, r, u = self.image(i["x"]), self.image(i["dy"]), [case["r"]] * 2, [case["u"]] * 2
        forward = self.torch.ops.aten.max_pool2d_with_indices
        if which == "forward":
            return self._no_grad(lambda: forward(x, r, u)), lambda y: [self.back(y[0])]
        backward, index = self.torch.ops.aten.max_pool2d_with_indices_backward, forward(x, r, u)[1]
        call = lambda: backward(dy, x, r, u, [0, 0], [1, 1], False, index)  # noqa: E731
        return self._no_grad(call), lambda y: [self.back(y)]

    def avg_pool2d(self, case, which, i):
        x, dy, r, u = self.image(i["x"]), self.image(i["dy"]), [case["r"]] * 2, [case["u"]] * 2
        aten = self.torch.ops.aten
        if which == "forward":
            return self._no_grad(lambda: aten.avg_pool2d(x, r, u)), lambda y: [self.back(y)]
        call = lambda: aten.avg_pool2d_backward(dy, x, r, u, [0, 0], False, True, None)  # noqa: E731
        return self._no_grad(call), lambda y: [self.back(y)]

    def _activation(self, case, which, i):
        x, dy, aten = self.flat(i["x"]), self.flat(i["dy"]), self.torch.ops.aten
        name = case.family.name
        forward = {
            "relu": aten.relu,
            "sigmoid": aten.sigmoid,
            "tanh": aten.tanh,
            "softmax": lambda x: aten._softmax(x, -1, False),
        }[name]
        if which == "forward":
            return self._no_grad(lambda: forward(x)), lambda y: [self.back(y)]
        y = forward(x)
        call = {
            "relu": lambda: aten.threshold_backward(dy, y, 0),
            "sigmoid": lambda: aten.sigmoid_backward(dy, y),
            "tanh": lambda: aten.tanh_backward(dy, y),
            "softmax": lambda: aten._softmax_backward_data(dy, y, -1, self.torch.float32),
        }[name]
        return self._no_grad(call), lambda y: [self.back(y)]

    relu = sigmoid = tanh = softmax = _activation

    def rescale(self, case, which, i):
        x, rows, scale = self.flat(i["x"]), self.flat(i["rows"]), case.family.scale
        return self._no_grad(lambda: x.index_select(0, rows) * scale), lambda y: [y.cpu().numpy()]

    def softmax_cross_entropy(self, case, which, i):
        x, labels, aten = self.flat(i["x"]), self.flat(i["labels"].astype(np.int64)), self.torch.ops.aten
        cross_entropy = self.torch.nn.functional.cross_entropy
        if which == "forward":
            call = lambda: cross_entropy(x, labels, reduction="none")  # noqa: E731
            return self._no_grad(call), lambda y: [self.back(y)]
        logs, mean = self.torch.log_softmax(x, -1), 1  # what autograd keeps, and the mean over rows
        total, one = aten.nll_loss_forward(logs, labels, None, mean, -100)[1], x.new_ones(())

        def call():
            dlogs = aten.nll_loss_backward(one, logs, labels, None, mean, -100, total)
            return aten._log_softmax_backward_data(dlogs, logs, -1, x.dtype)

        return self._no_grad(call), lambda y: [self.back(y)]

    def batch_norm(self, case, which, i):
        x, dy = self.image(i["x"]), self.image(i["dy"])
        gamma, beta, aten = self.flat(i["gamma"]), self.flat(i["beta"]), self.torch.ops.aten
        epsilon = kernels.BatchNorm.epsilon
        forward = lambda: aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, epsilon)  # noqa: E731
        if which == "forward":
            return self._no_grad(forward), lambda y: [self.back(y[0])]
        _, mean, inverse = forward()
        backward = aten.native_batch_norm_backward
        call = lambda: backward(dy, x, gamma, None, None, mean, inverse, True, epsilon, [True] * 3)  # noqa: E731
        return self._no_grad(call), lambda y: [self.back(y[0])]

    # ------------------------------------------------------------------ networks

    def adam(self, parameters):
        fused = {"fused": True} if self.variants & {"fused", "compile", "graph"} else {}
        if "graph" in self.variants:
            fused["capturable"] = True
        betas = (networks.BETA_1, networks.BETA_2)
        return self.torch.optim.Adam(
            parameters, lr=networks.LEARNING_RATE, betas=betas, eps=networks.EPSILON, **fused
        )

    def adam_step(self, case, which, i):
        torch = self.torch
        ws = [torch.nn.Parameter(self.flat(w)) for w in i["ws"]]
        optimizer, fused = self.adam(ws), "fused" in self.variants
        for w, dw, m, v in zip(ws, i["dws"], i["ms"], i["vs"], strict=True):
            w.grad = self.flat(dw)
            step = torch.tensor(float(case.family.step - 1), device=self.device if fused else "cpu")
            optimizer.state[w] = {"step": step, "exp_avg": self.flat(m), "exp_avg_sq": self.flat(v)}

        def call():
            optimizer.step()
            return ws

        return call, lambda ws: [w.detach().cpu().numpy() for w in ws]

    def network(self, name, weights):
        """The network of networks.NETWORKS with these weights; the first matrix's rows come in PyTorch's order of pixels."""

        torch, nn = self.torch, self.torch.nn
        shapes, modules = networks.NETWORKS[name], []
        for number, shape in enumerate(shapes):
            w, b = weights[2 * number], weights[2 * number + 1]
            if len(shape) == 4:
                layer = nn.Conv2d(shape[2], shape[3], shape[0])
                w = w.transpose(3, 2, 0, 1)
            else:
                layer = nn.Linear(*shape)
                if len(shapes[number - 1]) == 4:
                    modules.append(nn.Flatten())
                    channels = shapes[number - 1][3]
                    side = round((shape[0] / channels) ** 0.5)
                    w = w.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(shape)
                w = w.T
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(w.copy()))
                layer.bias.copy_(torch.from_numpy(b))
            modules.append(layer)
            if number < len(shapes) - 1:
                modules.append(nn.ReLU())
            if number < networks.POOLED[name]:
                modules.append(nn.MaxPool2d(2))
        return nn.Sequential(*modules).to(self.device, memory_format=self.format)

    def inference(self, case, which, i):
        model, x = self.network(case["x"], i["weights"]).eval(), self.image(i["x"])
        run = self.torch.compile(model) if "compile" in self.variants else model
        call = self._no_grad(lambda: run(x))
        return self._graph(call) if "graph" in self.variants else call, lambda y: [self.back(y)]

    def _graph(self, call, warm=3):
        """The call as a captured graph; its result lies in the same memory each time."""
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose kernels and allocate before the capture
            for _ in range(warm):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay():
            graph.replay()
            return result

        return replay

    def train_step(self, case, which, i):
        torch = self.torch
        model = self.network(case["x"], i["weights"])
        optimizer = self.adam(model.parameters())
        run = torch.compile(model) if "compile" in self.variants else model
        xs = [self.image(x) for x in i["x"]]
        labels = [self.flat(y.astype(np.int64)) for y in i["labels"]]
        cross_entropy, step = torch.nn.functional.cross_entropy, 0

        def call():
            nonlocal step
            optimizer.zero_grad()
            loss = cross_entropy(run(xs[step % len(xs)]), labels[step % len(xs)])
            loss.backward()
            optimizer.step()
            step += 1
            return loss

        if "graph" in self.variants:
            call = self._training_graph(model, optimizer, xs, labels)
        return call, lambda loss: [self.back(loss)]

    def _training_graph(self, model, optimizer, xs, labels):
        """The step on fixed memory, into which each batch is copied, captured; the weights begin as they were."""
        torch = self.torch
        x, label = xs[0].clone(), labels[0].clone()
        begin = [w.detach().clone() for w in model.parameters()]

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(x), label)
            loss.backward()
            optimizer.step()
            return loss.detach()

        replay, count = self._graph(step), 0
        with torch.no_grad():
            for w, first in zip(model.parameters(), begin, strict=True):
                w.copy_(first)
                for value in optimizer.state[w].values():
                    value.zero_()

        def call():
            nonlocal count
            x.copy_(xs[count % len(xs)])
            label.copy_(labels[count % len(xs)])
            count += 1
            return replay()

        return call


class Jax(Peer):
    """JAX through XLA, jitted; a call waits for its result. On a GPU whole steps alone are measured, which need no wait for
    each, and float32 is float32."""

    devices = ("cpu", "cuda")

    def load(self):
        os.environ.setdefault("JAX_PLATFORMS", self.device)
        os.environ.setdefault(
            "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
        )  # the GPU is shared with the other contenders
        import jax

        self.jax = jax
        jax.config.update("jax_default_matmul_precision", "highest")
        self.wait = jax.block_until_ready if self.device == "cpu" else lambda result: result

    def prepare(self, case, which, inputs):
        if self.device == "cuda" and not case.family.whole:
            raise Unsupported("JAX has no events to time single kernels by")
        return super().prepare(case, which, inputs)

    def clock(self, case):
        return super().clock(case) if self.device == "cpu" else step_clock(self.jax.block_until_ready)

    def describe(self):
        import jaxlib

        told = {**super().describe(), "jax": self.jax.__version__, "jaxlib": jaxlib.__version__}
        try:
            told["optax"] = importlib.metadata.version("optax")
        except importlib.metadata.PackageNotFoundError:
            told["optax"] = "not installed"
        return told

    def _jitted(self, function, *arguments, results=lambda y: [y]):
        run, put = self.jax.jit(function), self.jax.device_put(arguments)
        wait = self.wait
        return lambda: wait(run(*put)), lambda y: [np.asarray(v) for v in results(y)]

    def gemm(self, case, which, i):
        ta, tb = (c == "t" for c in case["t"])
        return self._jitted(lambda a, b: (a.T if ta else a) @ (b.T if tb else b), i["a"], i["b"])

    def conv2d(self, case, which, i):
        u, p = case["u"], case["p"]

        def conv(x, w):
            return self.jax.lax.conv_general_dilated(
                x, w, (u, u), [(p, p)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        x, w, b, dy = i["x"], i["w"], i["b"], i["dy"]
        if which == "forward":
            return self._jitted(lambda x, w, b: conv(x, w) + b, x, w, b)
        if which == "backward_x":
            of_x = lambda dy, w: self.jax.vjp(lambda x: conv(x, w), self.jax.numpy.zeros_like(x))[1](dy)[0]  # noqa: E731
            return self._jitted(of_x, dy, w)
        of_w = lambda dy, x: (  # noqa: E731
            self.jax.vjp(lambda w: conv(x, w), self.jax.numpy.zeros_like(w))[1](dy)[0],
            dy.sum((0, 1, 2)),
        )
        return self._jitted(of_w, dy, x, results=list)

    def max_pool2d(self, case, which, i):
        r, u, lax = case["r"], case["u"], self.jax.lax
        pool = lambda x: lax.reduce_window(x, -float("inf"), lax.max, (1, r, r, 1), (1, u, u, 1), "VALID")  # noqa: E731
        if which == "forward":
            return self._jitted(pool, i["x"])
        return self._jitted(lambda dy, x: self.jax.vjp(pool, x)[1](dy)[0], i["dy"], i["x"])

    def _forward(self, name, weights, x):
        jax, lax = self.jax, self.jax.lax
        shapes = networks.NETWORKS[name]
        for number, shape in enumerate(shapes):
            w, b = weights[2 * number], weights[2 * number + 1]
            if len(shape) == 4:
                x = (
                    lax.conv_general_dilated(
                        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                    )
                    + b
                )
            else:
                x = x.reshape(len(x), -1) @ w + b
            x = jax.nn.relu(x) if number < len(shapes) - 1 else x
            if number < networks.POOLED[name]:
                x = lax.reduce_window(x, -float("inf"), lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x

    def inference(self, case, which, i):
        return self._jitted(lambda w, x: self._forward(case["x"], w, x), i["weights"], i["x"])

    def train_step(self, case, which, i):
        import optax

        jax = self.jax
        adam = optax.adam(networks.LEARNING_RATE, networks.BETA_1, networks.BETA_2, eps=networks.EPSILON)

        def loss_of(weights, x, labels):
            y = self._forward(case["x"], weights, x)
            return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()

        @jax.jit
        def update(weights, state, x, labels):
            loss, gradients = jax.value_and_grad(loss_of)(weights, x, labels)
            updates, state = adam.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state, loss

        weights = jax.device_put(i["weights"])
        state = adam.init(weights)
        xs, labels, step = jax.device_put(i["x"]), jax.device_put(i["labels"]), 0

        def call():
            nonlocal weights, state, step
            weights, state, loss = update(weights, state, xs[step % len(xs)], labels[step % len(xs)])
            step += 1
            return self.wait(loss)

        return call, lambda loss: [np.asarray(loss)]


class CuPy(Peer):
    """cuBLAS as CuPy calls it, in float32."""

    devices = ("cuda",)

    def load(self):
        import cupy

        self.cupy = cupy
        self.flushed = cupy.empty(FLUSH_BYTES, np.uint8)

    def describe(self):
        cuda = self.cupy.cuda
        version = cuda.cublas.getVersion(cuda.device.get_cublas_handle())
        return {**super().describe(), "cupy": self.cupy.__version__, "cublas": str(version)}

    def clock(self, case):
        def elapsed_ms(begin, end):
            end.synchronize()
            return self.cupy.cuda.get_elapsed_time(begin, end)

        return event_clock(self.cupy.cuda.Event, elapsed_ms, lambda: self.flushed.fill(0))

    def gemm(self, case, which, i):
        if case.precision != "float32":
            raise Unsupported("CuPy multiplies float32 in float32")
        a, b = self.cupy.asarray(i["a"]), self.cupy.asarray(i["b"])
        a, b = (a.T if case["t"][0] == "t" else a), (b.T if case["t"][1] == "t" else b)
        return lambda: a @ b, lambda y: [y.get()]


class TensorFlow(Peer):
    """TensorFlow through tf.function, NHWC; a call ends with its result in NumPy's hands."""

    def load(self):
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        import tensorflow as tf

        self.tf = tf
        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    def describe(self):
        import keras

        return {**super().describe(), "tensorflow": self.tf.__version__, "keras": keras.__version__}

    def _function(self, function, *arguments, results=lambda y: [y]):
        run, there = self.tf.function(function), [self.tf.constant(a) for a in arguments]

        def call():
            y = run(*there)
            return [v.numpy() for v in results(y)]

        return call, lambda y: y

    def gemm(self, case, which, i):
        ta, tb = (c == "t" for c in case["t"])
        matmul = self.tf.linalg.matmul
        return self._function(lambda a, b: matmul(a, b, transpose_a=ta, transpose_b=tb), i["a"], i["b"])

    def conv2d(self, case, which, i):
        raw, u, p = self.tf.raw_ops, case["u"], case["p"]
        options = {"strides": [1, u, u, 1], "padding": "EXPLICIT" if p else "VALID"}
        if p:
            options["explicit_paddings"] = [0, 0, p, p, p, p, 0, 0]
        x, w, b, dy = i["x"], i["w"], i["b"], i["dy"]
        if which == "forward":
            return self._function(lambda x, w, b: raw.Conv2D(input=x, filter=w, **options) + b, x, w, b)
        if which == "backward_x":
            of_x = raw.Conv2DBackpropInput
            call = lambda dy, w: of_x(input_sizes=x.shape, filter=w, out_backprop=dy, **options)  # noqa: E731
            return self._function(call, dy, w)
        of_w, of_b = raw.Conv2DBackpropFilter, self.tf.reduce_sum
        return self._function(
            lambda dy, x: (
                of_w(input=x, filter_sizes=w.shape, out_backprop=dy, **options),
                of_b(dy, (0, 1, 2)),
            ),
            dy,
            x,
            results=list,
        )

    def max_pool2d(self, case, which, i):
        raw, r, u = self.tf.raw_ops, case["r"], case["u"]
        options = {"ksize": [1, r, r, 1], "strides": [1, u, u, 1], "padding": "VALID"}
        if which == "forward":
            return self._function(lambda x: raw.MaxPool(input=x, **options), i["x"])
        y = raw.MaxPool(input=i["x"], **options)
        grad = raw.MaxPoolGrad
        call = lambda dy, x, y: grad(orig_input=x, orig_output=y, grad=dy, **options)  # noqa: E731
        return self._function(call, i["dy"], i["x"], y)

    def network(self, name, weights):
        """The network of networks.NETWORKS as a Keras model."""
        import keras

        layers, shapes = keras.layers, networks.NETWORKS[name]
        model = keras.Sequential([keras.Input(networks.IMAGE)])
        for number, shape in enumerate(shapes):
            activation = "relu" if number < len(shapes) - 1 else None
            if len(shape) == 4:
                model.add(layers.Conv2D(shape[3], shape[:2], activation=activation))
                if number < networks.POOLED[name]:
                    model.add(layers.MaxPooling2D())
                continue
            if len(shapes[number - 1]) == 4:
                model.add(layers.Flatten())
            model.add(layers.Dense(shape[1], activation=activation))
        model.set_weights(weights)
        return model

    def _adam(self):
        import keras

        return keras.optimizers.Adam(
            networks.LEARNING_RATE, networks.BETA_1, networks.BETA_2, networks.EPSILON
        )

    def inference(self, case, which, i):
        model = self.network(case["x"], i["weights"])
        return self._function(lambda x: model(x, training=False), i["x"])

    def train_step(self, case, which, i):
        import keras

        tf = self.tf
        model, adam = self.network(case["x"], i["weights"]), self._adam()
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        adam.build(model.trainable_variables)

        @tf.function
        def update(x, labels):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(x, training=True))
            adam.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        xs, labels = [tf.constant(x) for x in i["x"]], [tf.constant(y) for y in i["labels"]]
        step = 0

        def call():
            nonlocal step
            loss = update(xs[step % len(xs)], labels[step % len(xs)]).numpy()
            step += 1
            return loss

        return call, lambda loss: [loss]


class Keras(TensorFlow):
    """Keras on TensorFlow, by train_on_batch and predict_on_batch."""

    gemm = conv2d = max_pool2d = None  # type: ignore[assignment]

    def inference(self, case, which, i):
        model, x = self.network(case["x"], i["weights"]), i["x"]
        model.compile()
        return lambda: model.predict_on_batch(x), lambda y: [y]

    def train_step(self, case, which, i):
        import keras

        model, xs, labels = self.network(case["x"], i["weights"]), i["x"], i["labels"]
        model.compile(self._adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        step = 0

        def call():
            nonlocal step
            model.reset_metrics()  # train_on_batch gives a mean since the last reset
            loss = model.train_on_batch(xs[step % len(xs)], labels[step % len(xs)])
            step += 1
            return loss

        return call, lambda loss: [np.asarray(loss).reshape(())]


def onnx_network(name, weights):
    """The network of networks.NETWORKS as the bytes of an ONNX model: x (n, 3, 32, 32) to y (n, 10)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    shapes, nodes, stored, last = networks.NETWORKS[name], [], [], "x"

    def add(op, *operands, **attributes):
        nonlocal last
        names = [last]
        for operand in operands:
            names.append(f"w{len(stored)}")
            stored.append(numpy_helper.from_array(np.ascontiguousarray(operand), names[-1]))
        last = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, names, [last], **attributes))

    for number, shape in enumerate(shapes):
        w, b = weights[2 * number], weights[2 * number + 1]
        if len(shape) == 4:
            add("Conv", w.transpose(3, 2, 0, 1), b, kernel_shape=shape[:2])
        else:
            if len(shapes[number - 1]) == 4:
                add("Flatten")
                channels = shapes[number - 1][3]
                side = round((shape[0] / channels) ** 0.5)
                w = w.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(shape)
            add("Gemm", w.T, b, transB=1)
        if number < len(shapes) - 1:
            add("Relu")
        if number < networks.POOLED[name]:
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    h, w, c = networks.IMAGE
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", c, h, w]),
        helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", shapes[-1][1]]),
    ]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


class OnnxRuntime(Peer):
    """ONNX Runtime's CPU provider, with an ONNX model of the network."""

    def load(self):
        import onnxruntime

        self.onnxruntime = onnxruntime

    def describe(self):
        return {**super().describe(), "onnxruntime": self.onnxruntime.__version__}

    def inference(self, case, which, i):
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        model = onnx_network(case["x"], i["weights"])
        session = self.onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {"x": _nchw(i["x"])}
        return lambda: session.run(None, feed), lambda y: y


class OpenVino(Peer):
    """OpenVINO's CPU plugin, with an ONNX model of the network, compiled for the case's batch, float32."""

    def load(self):
        import openvino

        self.openvino = openvino

    def describe(self):
        return {**super().describe(), "openvino": self.openvino.__version__}

    def inference(self, case, which, i):
        core, x = self.openvino.Core(), _nchw(i["x"])
        model = core.read_model(onnx_network(case["x"], i["weights"]), b"")
        model.reshape(list(x.shape))
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer({0: x}, share_inputs=True), lambda y: [y[0].copy()]


LIBRARIES = {
    "fastnn": None,
    "numpy": NumPy,
    "torch": Torch,
    "tensorflow": TensorFlow,
    "keras": Keras,
    "jax": Jax,
    "cupy": CuPy,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
