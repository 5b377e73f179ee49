"""Backpropagation by hand: a 3-2-1 network with ReLU, x = [1, 0, 1], y = 0.9.

    h = max(0, x W1 + b1)        3 inputs -> 2 hidden units
    o = h W2 + b2                2 hidden units -> 1 output
    L = (o - y)^2                mean squared error of one number

Each gradient that the kernels compute is printed next to the formula that the chain rule gives with pencil
and paper, and compared; the script exits with 1 where any of them differs. Then the layer API takes one
step of gradient descent through the same network, and has to land on the same weights.
"""

from __future__ import annotations

import sys

import numpy as np
from fastnn import layers, losses, models, ops, optimizers

x = np.array([[1.0, 0.0, 1.0]])  # one sample, (N, 3)
y = np.array([[0.9]])
w1 = np.array([[0.2, 0.4], [0.5, -0.3], [0.1, 0.3]])  # (inputs, hidden units)
b1 = np.array([0.1, -0.2])
w2 = np.array([[0.6], [-0.5]])  # (hidden units, outputs)
b2 = np.array([0.3])
learning_rate = 0.5

wrong = 0


def show(name: str, formula: str, by_hand: float, by_fastnn: float) -> None:
    """Print both numbers, and count them as wrong if they differ by more than a few float64 roundings."""
    global wrong
    same = abs(by_hand - by_fastnn) <= 8 * np.finfo(float).eps
    wrong += not same
    print(f"{name:<10} {formula:<52} {by_hand:11.6f} {by_fastnn:11.6f}  {'equal' if same else 'DIFFERS'}")


# Forward, then backward: the loss turns it round, and every step has its mirror image.
h = ops.gemm(x, w1, bias=b1, relu=True)
o = ops.gemm(h, w2, bias=b2)
loss = ops.mean_squared_error(o, y)

do = ops.mean_squared_error_backward(np.ones(1), o, y)
dh, dw2 = ops.gemm_backward(do, h, w2)
db2 = ops.bias_backward(do)
dz = ops.relu_backward(dh, h)
dx, dw1 = ops.gemm_backward(dz, x, w1)
db1 = ops.bias_backward(dz)

# The same by hand, in plain Python numbers. on is ReLU's derivative: 1 where a unit passes on.
X, Y, W1, B1 = x[0].tolist(), y[0, 0].item(), w1.tolist(), b1.tolist()
W2, B2 = w2[:, 0].tolist(), b2[0].item()
Z = [X[0] * W1[0][j] + X[1] * W1[1][j] + X[2] * W1[2][j] + B1[j] for j in range(2)]
H = [max(0.0, Z[j]) for j in range(2)]
on = [1.0 if Z[j] > 0 else 0.0 for j in range(2)]
O = H[0] * W2[0] + H[1] * W2[1] + B2

print(f"{'':<10} {'formula':<52} {'by hand':>11} {'fastnn':>11}")
for j in range(2):
    show(f"h{j + 1}", f"max(0, x.W1[:,{j + 1}] + b1[{j + 1}])", H[j], h[0, j])
show("o", "h.W2 + b2", O, o[0, 0])
show("L", "(o - y)^2", (O - Y) ** 2, loss[0])
show("dL/do", "2 (o - y)", 2 * (O - Y), do[0, 0])
for j in range(2):
    show(f"dL/dW2[{j + 1}]", f"2 (o - y) h{j + 1}", 2 * (O - Y) * H[j], dw2[j, 0])
show("dL/db2", "2 (o - y)", 2 * (O - Y), db2[0])
for i in range(3):
    for j in range(2):
        formula = f"2 (o - y) W2[{j + 1}] on{j + 1} x{i + 1}"
        show(f"dL/dW1[{i + 1},{j + 1}]", formula, 2 * (O - Y) * W2[j] * on[j] * X[i], dw1[i, j])
for j in range(2):
    show(f"dL/db1[{j + 1}]", f"2 (o - y) W2[{j + 1}] on{j + 1}", 2 * (O - Y) * W2[j] * on[j], db1[j])
for i in range(3):
    formula = f"2 (o - y) (W2[1] on1 W1[{i + 1},1] + W2[2] on2 W1[{i + 1},2])"
    by_hand = 2 * (O - Y) * (W2[0] * on[0] * W1[i][0] + W2[1] * on[1] * W1[i][1])
    show(f"dL/dx{i + 1}", formula, by_hand, dx[0, i])

# The layer API walks the same way, and gradient descent steps down the same slope.
model = models.Sequential(
    [layers.Dense(2, activation="relu", input_shape=(3,)), layers.Dense(1)], dtype="float64"
)
model.set_weights([w1, b1, w2, b2])
model.compile(optimizer=optimizers.SGD(learning_rate), loss=losses.MeanSquaredError())
model.train_on_batch(x, y)
after = model.get_weights()
show("W1[1,1]", "W1[1,1] - 0.5 dL/dW1[1,1]", W1[0][0] - learning_rate * dw1[0, 0], after[0][0, 0])
show("b1[1]", "b1[1] - 0.5 dL/db1[1]", B1[0] - learning_rate * db1[0], after[1][0])
show("W2[1]", "W2[1] - 0.5 dL/dW2[1]", W2[0] - learning_rate * dw2[0, 0], after[2][0, 0])
show("b2", "b2 - 0.5 dL/db2", B2 - learning_rate * db2[0], after[3][0])
new_loss = model.test_on_batch(x, y)
print(f"loss before the step {loss[0]:.6f}, after it {new_loss:.6f}")
print("every number agrees" if not wrong else f"{wrong} numbers differ")
sys.exit(1 if wrong else 0)
