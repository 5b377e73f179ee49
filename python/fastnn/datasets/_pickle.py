"""Read the pickled batches of CIFAR-10's Python archive without running them.

A pickle is a program. An unpickler that refuses its calls still lets it fill the memory or overrun the stack
(memo indices, hashes of nested keys). So this one reads only the few opcodes that such a file holds: numbers,
strings, lists, dictionaries, and one array, which NumPy spells as calls. The calls are recorded, never made.
The opcodes are described in Python's Lib/pickletools.py.
"""

from __future__ import annotations

from typing import Any

MAX_OPCODES = 200_000  # a genuine batch has 30,000 to 90,000
_ENCODE = "_codecs.encode"  # how Python 3 spells bytes in protocol 2
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")  # NumPy 1 and 2
_ALLOWED = {_ENCODE, *_RECONSTRUCT, "numpy.ndarray", "numpy.dtype"}


class _Call:
    """A call the pickle asks for. Only names of globals are str here: all the file's strings are bytes."""

    __match_args__ = ("function", "arguments", "state")

    def __init__(self, function: str, arguments: Any) -> None:
        self.function = function
        self.arguments: Any = arguments
        self.state: Any = None


def loads(data: bytes) -> dict[bytes, Any]:
    """The dictionary of a pickled batch, protocols 1 to 4: strings as bytes, arrays for `uint8_matrix`.

    Raises ValueError naming the global or opcode that a batch does not hold, or where the file breaks off.
    """
    reader = _Reader(data)
    try:
        value = reader.run()
    except (IndexError, KeyError, TypeError, AttributeError) as error:  # e.g. an empty stack
        raise ValueError(f"malformed pickle before byte {reader.position}") from error
    if not isinstance(value, dict):
        raise ValueError("the pickle holds no dictionary")
    return value


def uint8_matrix(value: Any) -> tuple[tuple[int, int], bytes | memoryview] | None:
    """(shape, bytes in C order) where the value read is a pickled uint8 array of two axes, else None."""
    match value:
        case _Call(
            function,
            _,
            (_, (int(rows), int(columns)), _Call("numpy.dtype", (b"u1", *_)), False, raw),
        ) if function in _RECONSTRUCT and isinstance(raw, bytes | memoryview) and len(raw) == rows * columns:
            return (rows, columns), raw
    return None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, size: int) -> bytes:
        return self.data[self.position : self.skip(size)]

    def long_string(self, size: int) -> bytes | memoryview:
        """As bytes where it may be a key; what is longer is not copied: it may be an array of 30 MB."""
        return self.take(size) if size < 256 else memoryview(self.data)[self.position : self.skip(size)]

    def skip(self, size: int) -> int:
        self.position += size
        if self.position > len(self.data):
            raise ValueError(f"the pickle breaks off at byte {len(self.data)}")
        return self.position

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        return self.take((end if end >= 0 else len(self.data)) - self.position + 1)[:-1]

    def run(self) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        may_encode = 2 * len(self.data)  # a memoised text could be encoded again and again

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        for _ in range(MAX_OPCODES):
            match self.take(1):
                case b"K":
                    stack.append(self.number(1))
                case b"M":
                    stack.append(self.number(2))
                case b"J":
                    stack.append(int.from_bytes(self.take(4), "little", signed=True))
                case b"U" | b"C" | b"\x8c":  # short string of Python 2, bytes, text
                    stack.append(self.take(self.number(1)))
                case b"T" | b"B" | b"X":
                    stack.append(self.long_string(self.number(4)))
                case b"\x8e" | b"\x8d":
                    stack.append(self.long_string(self.number(8)))
                case b"N":
                    stack.append(None)
                case b"\x88":
                    stack.append(True)
                case b"\x89":
                    stack.append(False)
                case b"I":  # protocol 1 has no other way to spell booleans
                    stack.append({b"00": False, b"01": True}[self.line()])
                case b"q":
                    memo[self.number(1)] = stack[-1]
                case b"r":
                    memo[self.number(4)] = stack[-1]
                case b"\x94":
                    memo[len(memo)] = stack[-1]
                case b"h":
                    stack.append(memo[self.number(1)])
                case b"j":
                    stack.append(memo[self.number(4)])
                case b"(":
                    marks.append(len(stack))
                case b")":
                    stack.append(())
                case b"\x85" | b"\x86" | b"\x87" as op:
                    size = op[0] - 0x84
                    stack[-size:] = [tuple(stack[-size:])]
                case b"t":
                    stack.append(tuple(since_mark()))
                case b"]":
                    stack.append([])
                case b"a":
                    item = stack.pop()
                    stack[-1].append(item)
                case b"e":
                    items = since_mark()
                    stack[-1].extend(items)
                case b"}":
                    stack.append({})
                case b"s":
                    items = [stack.pop(), stack.pop()]
                    _set_items(stack[-1], items[::-1])
                case b"u":
                    items = since_mark()
                    _set_items(stack[-1], items)
                case b"c":
                    stack.append(_global(self.line(), self.line()))
                case b"\x93":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_global(module, name))
                case b"R":
                    arguments, function = stack.pop(), stack.pop()
                    if function == _ENCODE:
                        may_encode -= len(arguments[0])
                        stack.append(_encode(arguments, may_encode))
                    elif isinstance(function, str):
                        stack.append(_Call(function, arguments))
                    else:
                        raise TypeError("what is called is no global")
                case b"b":
                    state = stack.pop()
                    if not isinstance(stack[-1], _Call):
                        raise TypeError("state for a plain value")
                    stack[-1].state = state
                case b"\x80":
                    self.take(1)  # protocol number: what matters are the opcodes
                case b"\x95":
                    self.take(8)  # length of a frame: everything is in memory already
                case b".":
                    return stack.pop()
                case op:
                    raise ValueError(f"opcode {op!r} at byte {self.position - 1}: no CIFAR-10 batch holds it")
        raise ValueError(f"more than {MAX_OPCODES} pickle opcodes: no CIFAR-10 batch")


def _global(module: bytes, name: bytes) -> str:
    full = f"{str(module, 'utf-8')}.{str(name, 'utf-8')}"
    if full not in _ALLOWED:
        raise ValueError(f"the pickle asks for {full[:100]!r}, which no CIFAR-10 batch holds; refused")
    return full


def _encode(arguments: Any, may_encode: int) -> bytes:
    text, encoding = arguments
    if encoding not in (b"latin1", b"latin-1") or may_encode < 0:
        raise ValueError(f"{_ENCODE} is used in a way that no CIFAR-10 batch does; refused")
    return str(text, "utf-8").encode("latin-1")


def _set_items(target: dict[bytes, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, bytes):  # the hash of a deeply nested tuple overruns the stack
            raise TypeError("a key is no string")
        target[key] = value
