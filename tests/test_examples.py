"""The examples run, and the README says what is there."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from fastnn import cli, ops
from run_files import write_images

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run(name):
    """The example's variables, and its exit status."""
    try:
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__"), 0
    except SystemExit as end:
        return {}, end.code


def numbers(text):
    """{name: (by hand, by fastnn)} from the worked example's table."""
    rows = (
        re.match(r"(\S+) .* (-?\d+\.\d+) +(-?\d+\.\d+)  (equal|DIFFERS)$", line) for line in text.splitlines()
    )
    return {row[1]: (float(row[2]), float(row[3])) for row in rows if row}


def test_worked_example(capsys):
    assert run("worked_example.py")[1] == 0
    text = capsys.readouterr().out
    assert "every number agrees" in text
    found = numbers(text)
    # Worked out with pencil and paper: h = (0.4, 0.5), o = 0.24 - 0.25 + 0.3 = 0.29, o - y = -0.61.
    expected = {"h1": 0.4, "h2": 0.5, "o": 0.29, "L": 0.3721, "dL/do": -1.22, "dL/db2": -1.22}
    expected |= {"dL/dW2[1]": -0.488, "dL/dW2[2]": -0.61, "dL/db1[1]": -0.732, "dL/db1[2]": 0.61}
    expected |= {"dL/dW1[1,1]": -0.732, "dL/dW1[1,2]": 0.61, "dL/dW1[2,1]": 0, "dL/dW1[2,2]": 0}
    expected |= {"dL/dW1[3,1]": -0.732, "dL/dW1[3,2]": 0.61}
    expected |= {"dL/dx1": 0.0976, "dL/dx2": -0.549, "dL/dx3": 0.1098}
    assert {name: found[name] for name in expected} == {
        name: (value, value) for name, value in expected.items()
    }
    assert set(found) - set(expected) == {"W1[1,1]", "b1[1]", "W2[1]", "b2"}  # after one step


@pytest.mark.parametrize(
    "name", ["gemm_backward", "relu_backward", "bias_backward", "mean_squared_error_backward"]
)
def test_worked_example_finds_a_wrong_kernel(monkeypatch, capsys, name):
    right = getattr(ops, name)

    def wrong(*arguments, **keywords):
        result = right(*arguments, **keywords)
        if isinstance(result, tuple):
            return result[0], result[1] * (1 + 1e-9)
        return result * (1 + 1e-9)

    monkeypatch.setattr(ops, name, wrong)
    assert run("worked_example.py")[1] == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_tutorial_program(monkeypatch, tmp_path, capsys):
    # Ten classes of a few images each, where it looks for CIFAR-10.
    write_images(tmp_path, classes=[f"class {i}" for i in range(10)], train=3, test=2)
    monkeypatch.setenv("FASTNN_HOME", str(tmp_path))
    variables, status = run("cifar10_cnn.py")
    assert status == 0
    assert variables["model"].count_params() == 122_570
    assert len(variables["history"].history["val_accuracy"]) == 10
    assert variables["test_acc"] == variables["history"].history["val_accuracy"][-1]
    assert variables["test_loss"] == variables["history"].history["val_loss"][-1]
    assert "Epoch 10/10" in capsys.readouterr().out


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_readme_shows_the_tutorial_program():
    program = "\n".join(
        line for line in (EXAMPLES / "cifar10_cnn.py").read_text().splitlines() if not line.startswith("#")
    )
    assert fences((ROOT / "README.md").read_text(), "python")[0].strip() == program.strip()


def test_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    first, second = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[:2]
    assert first == 'python3 -m venv .venv && .venv/bin/pip install ".[train]" && .venv/bin/fastnn train\n'
    assert (
        second
        == 'python3 -m venv .venv && .venv/bin/pip install ".[test]" && .venv/bin/python -m pytest -n auto\n'
    )


def test_readme_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    commands = set(re.findall(r"^    (\w+)(?: |$)", capsys.readouterr().out, flags=re.MULTILINE))
    assert commands == set(
        re.findall(r"^\| `fastnn (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    )


def test_readme_library_example():
    program = fences((ROOT / "README.md").read_text(), "python")[1]
    variables = {}
    exec(program, variables)
    shapes = re.findall(r"^(\w+) = .*# \(([\d, ]+)\)$", program, flags=re.MULTILINE)
    assert [(name, variables[name].shape) for name, _ in shapes] == [("y", (8, 16, 16, 16))]
    assert variables["dw"].shape == variables["w"].shape


def test_links_of_the_readme_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_examples_need_no_more_than_the_package():
    for path in EXAMPLES.glob("*.py"):
        modules = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), flags=re.MULTILINE))
        assert modules - set(sys.stdlib_module_names) <= {"fastnn", "numpy"}
