"""What a code object means, apart from where it stands: comments, line numbers and docstrings are not in it.

`co_code` alone would not do: it refers to constants and names by position, and a docstring, or the line number that a
class body stores from 3.13 on, moves the others. So each instruction is taken with what it refers to.
"""

from __future__ import annotations

import dis
import marshal
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

_CONSTANTS, _NAMES = frozenset(dis.hasconst), frozenset(dis.hasname)
_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_SKIPPED = frozenset(("CACHE", "EXTENDED_ARG", "NOP"))
_PLACE = frozenset(("__doc__", "__firstlineno__", "__static_attributes__"))
"""What a class body stores of its place and text; the last one's order depends on the hash seed."""
_FLAGS = 0x3FF  # arguments, closure, generator, coroutine; those above are __future__ imports and has-a-docstring


@dataclass(frozen=True)
class Meaning:
    """One code object's.

    Attributes:
        shape: instructions, and names and numbers of variables.
        constants: in the order of their use; code of inner functions among them.
        paths: globals it reads, each with the attributes that follow: `mod.sub.f(x)` is ("mod", "sub", "f").
        imports: modules that it imports while it runs: name, level of a relative import, and names taken from it.
    """

    shape: bytes
    constants: tuple[object, ...]
    paths: frozenset[tuple[str, ...]]
    imports: frozenset[tuple[str, int, tuple[str, ...]]]


_known: weakref.WeakKeyDictionary[types.CodeType, Meaning] = weakref.WeakKeyDictionary()


def meaning(code: types.CodeType) -> Meaning:
    """What a code object means by itself: see `all_of` for its inner functions."""
    known = _known.get(code)
    if known is None:
        known = _known[code] = _read(code)
    return known


def all_of(code: types.CodeType) -> Iterator[Meaning]:
    """The meaning of a code object and of all code inside it."""
    found = meaning(code)
    yield found
    for constant in found.constants:
        if isinstance(constant, types.CodeType):
            yield from all_of(constant)


def _read(code: types.CodeType) -> Meaning:
    shape: list[object] = []
    constants: list[object] = []
    paths: set[tuple[str, ...]] = set()
    imports: set[tuple[str, int, tuple[str, ...]]] = set()
    values: list[object] = [None, None]  # of the two instructions before
    path: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if step.opname in _SKIPPED:
            continue
        if step.opname == "STORE_NAME" and step.argval in _PLACE and shape:
            if shape.pop() == (dis.opmap["LOAD_CONST"], None):
                constants.pop()
            continue
        if step.opcode in _CONSTANTS:
            shape.append((step.opcode, None))
            constants.append(step.argval)
        elif step.opcode in _NAMES:
            shape.append((step.opcode, step.argval, _flag(code, step)))
        else:
            shape.append((step.opcode, step.arg))
        if step.opname in _ATTRIBUTES and path:
            path = (*path, step.argval)
        else:
            if path:
                paths.add(path)
            path = (step.argval,) if step.opname in _GLOBALS else ()
        if step.opname == "IMPORT_NAME":
            level, names = values
            imports.add((step.argval, level if isinstance(level, int) else 0, tuple(names or ())))  # type: ignore[arg-type]
        values = [values[1], step.argval]
    if path:
        paths.add(path)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS)
    variables = (code.co_varnames, code.co_cellvars, code.co_freevars)
    handlers: bytes = getattr(code, "co_exceptiontable", b"")  # 3.10 has none
    data = marshal.dumps((shape, counts, variables, handlers), 2)
    return Meaning(data, tuple(constants), frozenset(paths), frozenset(imports))


def _flag(code: types.CodeType, step: dis.Instruction) -> int:
    """What an instruction says beside the name, in versions that keep that in the lowest bit of its argument."""
    assert step.arg is not None
    plain = step.arg < len(code.co_names) and code.co_names[step.arg] == step.argval
    return 0 if plain else step.arg & 1
