"""A restricted pickle interpreter: it returns plain records of what a pickle would make; nothing is imported or called.

docs/decisions/own-pickle-interpreter.md compares it with torch's own restricted unpickler.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["MOST_STEPS", "Global", "Object", "Persistent", "UnreadableError", "interpret"]

MOST_STEPS = 2_000_000  # opcodes of a pickle, and steps of a search in its records; a yolov5x has 100,000


class UnreadableError(ValueError):
    """Why a file cannot be read; the message continues "FILE cannot be read: "."""


@dataclass(frozen=True)
class Global:
    """A class or function that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, repr=False)
class Persistent:
    """A persistent identifier, with which torch refers to a storage."""

    identifier: object


@dataclass(eq=False, repr=False, slots=True)
class Object:
    """An object that unpickling would make: the callable, its arguments, and the state and items that would be set."""

    maker: object
    arguments: object
    state: object = None
    items: list[tuple[object, object]] = field(default_factory=list)


_DICT = Global("builtins", "dict")


class _Interpreter:
    """The stack and memo of a pickle machine. Sets become lists and dicts become Objects: hashing untrusted values can crash.

    pickle.Unpickler with a find_class that imports nothing would not execute anything either, but a file of nine bytes can make
    it allocate all memory (a large memo index), and deeply nested tuples as a dict key overflow the C stack.
    """

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._below: list[list[object]] = []  # the stacks below the marks
        self._memo: dict[int, object] = {}

    def run(self, program: bytes | BinaryIO) -> object:
        """Return the pickle's root; ValueError or IndexError if it is malformed."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if step > MOST_STEPS:
                raise UnreadableError(f"more than {MOST_STEPS:,} opcodes")
            if opcode.name in _STEPS:
                _STEPS[opcode.name](self)
            elif opcode.name in _STEPS_WITH_ARGUMENT:
                _STEPS_WITH_ARGUMENT[opcode.name](self, argument)
            elif opcode.name not in _WITHOUT_EFFECT:
                raise UnreadableError(f"the opcode {opcode.name} is not supported")
        return self._stack.pop()

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> object:
        return self._stack.pop()

    def pop_several(self, count: int) -> tuple[object, ...]:
        return tuple(reversed([self._stack.pop() for _ in range(count)]))

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[object]:
        above, self._stack = self._stack, self._below.pop()
        return above

    def drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise UnreadableError("it refers to a memo entry that does not exist")
        self._stack.append(self._memo[index])

    def extend(self, elements: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(elements)
        elif not isinstance(target, Object):  # items of list-like objects are ignored
            raise UnreadableError("it appends to a value that is not a list")

    def set_items(self, flat: Sequence[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Object):
            raise UnreadableError("it sets items of a value that is not a dict")
        target.items.extend(_pairs(flat))

    def make(self, maker: object, arguments: object) -> None:
        self._stack.append(Object(maker, arguments))

    def make_from_stack(self) -> None:
        maker, arguments = self.pop_several(2)
        self.make(maker, arguments)

    def make_with_keywords(self) -> None:
        maker, arguments, _ = self.pop_several(3)
        self.make(maker, arguments)

    def make_from_mark(self) -> None:
        maker, *arguments = self.pop_to_mark() or [None]
        self.make(maker, tuple(arguments))

    def make_by_name(self, names: str) -> None:
        self.make(_named(names), tuple(self.pop_to_mark()))

    def set_state(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(target, Object):
            raise UnreadableError("it sets the state of a value that is not an object")
        target.state = state

    def name(self) -> None:
        module, name = self.pop_several(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnreadableError("it imports a class or function whose name is not a string")
        self._stack.append(Global(module, name))

    def name_directly(self, names: str) -> None:
        self._stack.append(_named(names))


def interpret(program: bytes | BinaryIO) -> object:
    """Return the root of a pickle: numbers, strings, lists, tuples, and Objects for everything else.

    From a file, the pickle at the current position is read; the position is after it when the function returns.

    Raises:
        UnreadableError: it is malformed, has too many opcodes, or one that torch.save does not write.
    """
    try:
        return _Interpreter().run(program)
    except (ValueError, IndexError, DeprecationWarning) as error:  # DeprecationWarning: invalid escapes, if warnings are errors
        raise UnreadableError(f"its pickle is malformed ({error})") from error


def _named(names: str) -> Global:
    module, _, name = names.partition(" ")
    return Global(module, name)


def _pairs(flat: Sequence[object]) -> Iterator[tuple[object, object]]:
    if len(flat) % 2:
        raise UnreadableError("it has a key without a value")
    return zip(flat[::2], flat[1::2], strict=True)


_STEPS: dict[str, Callable[[_Interpreter], object]] = {
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),
    "NEWFALSE": lambda machine: machine.push(False),
    "MARK": _Interpreter.mark,
    "POP": _Interpreter.drop,
    "POP_MARK": _Interpreter.pop_to_mark,
    "DUP": _Interpreter.duplicate,
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "TUPLE1": lambda machine: machine.push(machine.pop_several(1)),
    "TUPLE2": lambda machine: machine.push(machine.pop_several(2)),
    "TUPLE3": lambda machine: machine.push(machine.pop_several(3)),
    "TUPLE": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    "EMPTY_LIST": lambda machine: machine.push([]),
    "EMPTY_SET": lambda machine: machine.push([]),
    "LIST": lambda machine: machine.push(machine.pop_to_mark()),
    "FROZENSET": lambda machine: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine: machine.extend([machine.pop()]),
    "APPENDS": lambda machine: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine: machine.extend(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine: machine.make(_DICT, ()),
    "DICT": lambda machine: machine.push(Object(_DICT, (), items=list(_pairs(machine.pop_to_mark())))),
    "SETITEM": lambda machine: machine.set_items(machine.pop_several(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_to_mark()),
    "STACK_GLOBAL": _Interpreter.name,
    "REDUCE": _Interpreter.make_from_stack,
    "NEWOBJ": _Interpreter.make_from_stack,
    "NEWOBJ_EX": _Interpreter.make_with_keywords,
    "OBJ": _Interpreter.make_from_mark,
    "BUILD": _Interpreter.set_state,
    "BINPERSID": lambda machine: machine.push(Persistent(machine.pop())),
    "MEMOIZE": _Interpreter.remember_next,
}
_STEPS_WITH_ARGUMENT: dict[str, Callable[[_Interpreter, Any], object]] = {
    "GLOBAL": _Interpreter.name_directly,
    "INST": _Interpreter.make_by_name,
    "PERSID": lambda machine, identifier: machine.push(Persistent(identifier)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Interpreter.recall),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Interpreter.remember),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Interpreter.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Interpreter.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"), _Interpreter.push),
}
_WITHOUT_EFFECT = frozenset({"PROTO", "FRAME", "STOP"})
