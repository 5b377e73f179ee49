"""What the compiler made of the CUDA kernels of a built fastnn._cuda: python .ci/cuda_code.py MODULE.so [--write]

Reads the machine code with cuobjdump and fails where float32 work is done by tensor cores or tensor-core work is not, or where
a product kernel needs more registers, bytes of stack, accesses to spilled registers, or instructions of its main loop for each
multiply-add, than cuda_code.json says. The main loop is the innermost one with the most multiply-adds: what stands between a
backward branch and its target. --write renews that file; look at what changed before committing it.
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
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)(.*)")


def lines_of(*command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")


class Code:
    """A kernel's opcodes in order, and its backward branches as (first, last) instruction."""

    def __init__(self):
        self.opcodes, self.places, self.loops, self.usage = [], {}, [], {}

    def add(self, address, opcode, operands):
        self.places[address] = len(self.opcodes)
        self.opcodes.append(opcode)
        if opcode == "BRA" and (target := re.search(r"0x([0-9a-f]+)", operands)):
            first = self.places.get(int(target[1], 16))
            if first is not None:
                self.loops.append((first, len(self.opcodes) - 1))

    def main_loop(self, work):
        """(instructions, those of them in work) of the loop with the most work; of several, the shortest."""
        counts = [(last + 1 - first, self.count(work, first, last + 1)) for first, last in self.loops]
        return max(counts, key=lambda c: (c[1], -c[0]), default=(0, 0))

    def count(self, opcodes, first=0, end=None):
        return sum(opcode in opcodes for opcode in self.opcodes[first:end])


def read(module):
    """{(architecture, kernel's mangled name): Code}"""
    kernels = collections.defaultdict(Code)
    arch = name = None
    for line in lines_of("cuobjdump", "--dump-resource-usage", module):
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif line.startswith(" Function "):
            name = line.split()[1].rstrip(":")
        elif found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            kernels[arch, name].usage = {"registers": int(found[1]), "stack": int(found[2])}
    for line in lines_of("cuobjdump", "-sass", module):
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif "Function : " in line:
            name = line.split()[2]
        elif found := INSTRUCTION.match(line):
            kernels[arch, name].add(int(found[1], 16), found[2], found[3])
    return kernels


def families(kernels):
    """Product kernels by architecture, tile, precision and vector width; of all operands the worst."""
    names = sorted({name for _, name in kernels})
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    shown = dict(zip(names, plain.stdout.replace("fastnn::cuda::", "").splitlines(), strict=True))
    table, problems = {}, []
    for (arch, name), code in sorted(kernels.items(), key=lambda item: item[0]):
        kind = re.match(r"void (\w+)<(.*?), Job<(\w+)", shown[name])
        if not kind or kind[1] not in PRODUCTS:
            continue
        where = f"{arch} {shown[name].split('(Jobs')[0]}"
        length, work = code.main_loop(PRODUCTS[kind[1]])
        if not work:
            problems.append(f"{where} has no loop with any of {PRODUCTS[kind[1]]}")
            continue
        tensor_cores = [code.count((opcode,)) for opcode in ("HMMA", "LDGSTS")]
        if [count > 0 for count in tensor_cores] != [kind[1] == "mma_kernel"] * 2:
            problems.append(f"{where}: {tensor_cores[0]} HMMA, {tensor_cores[1]} LDGSTS")
        large = " of large filters" if "LargePatches" in shown[name] else ""
        row = table.setdefault(
            f"{arch} {kind[1]}<{kind[2]}> {kind[3]}{large}",
            {"registers": 0, "stack": 0, "spills": 0, "instructions": 0},
        )
        here = {**code.usage, "spills": code.count(("STL", "LDL")), "instructions": round(length / work, 2)}
        row.update({what: max(row[what], value) for what, value in here.items()})
    return table, problems


def main(module, *options):
    table, problems = families(read(module))
    if not table:
        sys.exit(f"{module} has no product kernels")
    if "--write" in options:
        EXPECTED.write_text(json.dumps(table, indent=1) + "\n")
    expected = json.loads(EXPECTED.read_text())
    for key, row in table.items():
        rate = f"{row['instructions']:6.2f} instructions a multiply-add in the main loop"
        print(
            f"{row['registers']:4} registers, {row['stack']:2} bytes of stack, {row['spills']:2} spills, {rate}  {key}"
        )
        known = expected.get(key)
        if known is None:
            problems.append(f"{key} is not in {EXPECTED.name}: renew it with --write")
        elif any(row[what] > known[what] * SLACK for what in row):
            problems.append(f"{key}: {row} where {known} is expected")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
