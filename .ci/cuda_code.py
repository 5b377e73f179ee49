"""What the compiler made of the CUDA kernels of a built fastnn._cuda: python .ci/cuda_code.py MODULE.so [--write]

Reads the machine code with cuobjdump and fails where a product kernel spills registers, where float32 work is done by tensor
cores or tensor-core work is not, or where a kernel needs more registers or spends a smaller part of its instructions on
arithmetic than cuda_code.json says. --write renews that file; look at what changed before committing it.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

EXPECTED = pathlib.Path(__file__).with_name("cuda_code.json")
PRODUCTS = {"matmul_kernel": ("FFMA", "DFMA"), "mma_kernel": ("HMMA",)}
SLACK = 1.15  # other versions of the compiler allocate and unroll a little differently


def lines_of(*command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")


def read(module):
    """{(architecture, kernel's mangled name): {"registers": n, "stack": bytes, opcode: count, ...}}"""
    kernels = collections.defaultdict(collections.Counter)
    arch = name = None
    for line in lines_of("cuobjdump", "--dump-resource-usage", module):
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif line.startswith(" Function "):
            name = line.split()[1].rstrip(":")
        elif found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            kernels[arch, name].update(registers=int(found[1]), stack=int(found[2]))
    for line in lines_of("cuobjdump", "-sass", module):
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif "Function : " in line:
            name = line.split()[2]
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)", line):
            kernels[arch, name].update([found[1], "all"])
    return kernels


def families(kernels):
    """Product kernels by architecture, tile, precision and vector width; of all operands the worst."""
    names = sorted({name for _, name in kernels})
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    shown = dict(zip(names, plain.stdout.replace("fastnn::cuda::", "").splitlines(), strict=True))
    table, problems = {}, []
    for (arch, name), counts in sorted(kernels.items()):
        kind = re.match(r"void (\w+)<(.*?), Job<(\w+)", shown[name])
        if not kind or kind[1] not in PRODUCTS:
            continue
        work = sum(counts[opcode] for opcode in PRODUCTS[kind[1]])
        if counts["stack"] or counts["STL"] or counts["LDL"]:
            problems.append(
                f"{arch} {shown[name]} spills: stack {counts['stack']} bytes, {counts['STL']} STL"
            )
        if not work:
            problems.append(f"{arch} {shown[name]} has none of {PRODUCTS[kind[1]]}")
        if (kind[1] == "mma_kernel") != (counts["HMMA"] > 0 and counts["LDGSTS"] > 0):
            problems.append(f"{arch} {shown[name]}: {counts['HMMA']} HMMA, {counts['LDGSTS']} LDGSTS")
        row = table.setdefault(f"{arch} {kind[1]}<{kind[2]}> {kind[3]}", {"registers": 0, "arithmetic": 1.0})
        row["registers"] = max(row["registers"], counts["registers"])
        row["arithmetic"] = min(row["arithmetic"], round(work / counts["all"], 3))
    return table, problems


def main(module, *options):
    table, problems = families(read(module))
    if not table:
        sys.exit(f"{module} has no product kernels")
    if "--write" in options:
        EXPECTED.write_text(json.dumps(table, indent=1) + "\n")
    expected = json.loads(EXPECTED.read_text())
    for key, row in table.items():
        print(f"{row['registers']:4} registers, {row['arithmetic']:6.1%} of instructions arithmetic  {key}")
        known = expected.get(key)
        if known is None:
            problems.append(f"{key} is not in {EXPECTED.name}: renew it with --write")
        elif row["registers"] > known["registers"] * SLACK or row["arithmetic"] < known["arithmetic"] / SLACK:
            problems.append(f"{key}: {row} where {known} is expected")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
