"""Any object as bytes that say what it contains: equal for equal contents, in every session of one Python version.

Pickles do not: they depend on which equal objects are the same object, on the order of dictionaries and sets, and for
functions on line numbers. So objects are taken apart here:

    numbers, texts           themselves
    lists, dictionaries, ... a digest over the contents; dictionaries and sets in an order of their own
    arrays, bytes            a digest over dtype, shape and memory
    other objects            a digest over what `__reduce_ex__` takes them apart into
    functions, classes       their number in this digest; what they are follows once, so cycles end

The user's own functions and classes count with their code and all that it uses (`codes`), installed ones by name and
version (`origins`).
"""

from __future__ import annotations

import concurrent.futures
import copyreg
import functools
import hashlib
import marshal
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..wire.names import MAINS
from . import codes, origins
from .bulk import bulk

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))
_COMPOSITE, _NUMBERED, _BACK, _FUTURE = b"\xff", b"\xfe", b"\xfd", b"\xfc"  # marshal begins with none of these
_PLACES = frozenset(
    ("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__",
     "__annotations_cache__", "__slotnames__", "__wrapped__", "_value2member_map_")
)  # fmt: skip
"""Entries of a class or function that say where it is, or that Python adds in passing: `__slotnames__` by pickle,
`_value2member_map_` of flags by their combinations."""
_DISPATCHER = functools.singledispatch(print).__code__  # type: ignore[attr-defined]  # a function, in fact
_OF_SETS: tuple[Any, ...] = (set.__reduce__, frozenset.__reduce__)
_LONG = 1 << 16  # texts and bytes from here on are hashed by themselves

NameFuture = Callable[["concurrent.futures.Future[Any]"], "str | None"]
"""The name of the call whose result a future will be; None if nobody knows it."""


class NoContent(TypeError):
    """An object that cannot be taken apart."""


class Contents:
    """One digest in the making. Objects must live until it is done.

    Args:
        name_future: see NameFuture.
        names_only: take functions and classes for their names: for an order among them.
        versions: of installed packages count; looking them up takes a process that has not done so 0.1 s.

    Attributes:
        futures: those without a name, in the order in which they were met.
        places: what was met of the user's own modules that another process finds by a name, in that order.
    """

    def __init__(self, name_future: NameFuture | None = None, names_only: bool = False, versions: bool = True) -> None:
        self._name_future, self._names_only, self._versions = name_future, names_only, versions
        self.futures: list[concurrent.futures.Future[Any]] = []
        self.places: dict[origins.Place, None] = {}
        self._definitions: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._done: dict[int, tuple[object, bytes]] = {}  # by id, with the object, so that the id stays its own
        self._open: dict[int, int | None] = {}  # what is being taken apart; its label, if something in it refers to it
        self._labels = 0

    def digest(self, *objects: object) -> bytes:
        """What these objects contain, and the functions and classes in them.

        Raises:
            NoContent: names what cannot be taken apart.
        """
        try:
            parts = [self.encode(obj) for obj in objects]
            taken = 0
            while taken < len(self._definitions):
                parts.append(self._define(self._definitions[taken]))
                taken += 1
        except NoContent:
            raise
        except BaseException as exc:  # whatever the objects' own code raises; RecursionError of what is nested deeply
            raise NoContent(f"{type(exc).__name__}: {exc}") from exc
        return _seal("all", parts)

    def encode(self, obj: Any) -> bytes:
        """One object as bytes that end by themselves."""
        kind = type(obj)
        if kind in _PLAIN:
            if kind not in (str, bytes) or len(obj) < _LONG:
                return marshal.dumps(obj, 2)
            data = obj if kind is bytes else obj.encode("utf-8", "surrogatepass")
            return _seal(kind.__name__, (bulk(memoryview(data)),))
        known = self._done.get(id(obj))
        if known is not None:
            return known[1]
        if id(obj) in self._open:
            return self._refer_back(obj)
        self._open[id(obj)] = None
        try:
            tag, parts = self._take_apart(obj, kind)
        finally:
            label = self._open.pop(id(obj))
        if not tag:
            return parts[0]
        if label is not None:
            tag = f"{tag} {label}"
        sealed = _seal(tag, parts)
        self._done[id(obj)] = (obj, sealed)
        return sealed

    def _refer_back(self, obj: object) -> bytes:
        label = self._open[id(obj)]
        if label is None:
            label = self._open[id(obj)] = self._labels
            self._labels += 1
        return _BACK + label.to_bytes(8, "big")

    def _take_apart(self, obj: Any, kind: type) -> tuple[str, Sequence[bytes]]:
        """What kind of object, and its parts; an empty kind if it is one part that ends by itself."""
        if kind is list or kind is tuple:
            return kind.__name__, self._items(obj)
        if kind is dict or kind is types.MappingProxyType:
            return "dict", self._pairs(obj)
        if kind is set or kind is frozenset:
            return kind.__name__, self._ordered(obj)
        if kind is types.FunctionType or kind is origins.Source or issubclass(kind, type):
            return "", (self._definition(obj),)
        if isinstance(obj, concurrent.futures.Future):
            return "", (self._future(obj),)
        if hasattr(kind, "__remoteexec_contents__"):  # a handle of what is shared
            return "", (self.encode(obj.__remoteexec_contents__()),)
        special = _SPECIAL.get(kind)
        if special is not None:
            return special(self, obj)
        array = _as_array(obj)
        if array is not None:
            return self._array(array, array is not obj)
        frame = _as_frame(obj)
        if frame is not None:
            return kind.__name__, [self.encode(part) for part in frame]
        return self._object(obj, kind)

    # ---- containers ----

    def _items(self, items: Sequence[Any]) -> Sequence[bytes]:
        if set(map(type, items)) <= _PLAIN:
            try:
                return (b"p", marshal.dumps(items, 2))  # type: ignore[arg-type]  # all at once, since it is common
            except ValueError:  # 2 GiB and more
                pass
        return [b"o", *map(self.encode, items)]

    def _pairs(self, pairs: Any) -> list[bytes]:
        keys = self._sorted(pairs)
        return [part for key in keys for part in (self.encode(key), self.encode(pairs[key]))]

    def _ordered(self, items: Iterable[Any]) -> list[bytes]:
        return [self.encode(item) for item in self._sorted(items)]

    def _sorted(self, items: Iterable[Any]) -> list[Any]:
        """In an order that does not depend on the hash seed, nor on functions met before."""
        listed = list(items)
        kinds = set(map(type, listed))
        if kinds <= {str}:
            return sorted(listed)
        if kinds <= _PLAIN:
            return sorted(listed, key=lambda item: marshal.dumps(item, 2))
        return sorted(listed, key=lambda item: Contents(self._name_future, True, self._versions).digest(item))

    # ---- functions and classes ----

    def _definition(self, obj: Any) -> bytes:
        if self._names_only:
            return _seal("name", (marshal.dumps(_name(obj), 2),))
        place = origins.installed_place(obj)
        if place is not None:
            return self._installed(*place)
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._definitions)
            self._definitions.append(obj)
            self._note(origins.place_of(obj))
        return _NUMBERED + number.to_bytes(8, "big")

    def _define(self, obj: Any) -> bytes:
        if isinstance(obj, origins.Source):
            return self._module_source(obj)
        return self._function(obj) if isinstance(obj, types.FunctionType) else self._class(obj)

    def _function(self, fn: types.FunctionType) -> bytes:
        if fn.__code__ is _DISPATCHER:  # what else it has changes with its calls, and with all abstract classes
            return _seal("dispatcher", [self.encode(fn.__name__), *self._pairs(vars(fn)["registry"])])
        cells = [_cell(cell) for cell in fn.__closure__ or ()]
        parts = [
            self.encode(fn.__name__),
            self._code(fn.__code__),
            *(self._leniently(cell) for cell in cells),
            self._leniently(fn.__defaults__),
            self._leniently(fn.__kwdefaults__),
            *self._attributes(fn.__dict__),
        ]
        module = origins.module_of(fn)
        if origins.is_own(module):
            parts += self._used(fn.__code__, fn.__globals__)
        else:
            parts.append(self._installed(str(module), ""))
        return _seal("function", parts)

    def _class(self, cls: type) -> bytes:
        parts = [self.encode(cls.__qualname__), self.encode(type(cls)), *map(self.encode, cls.__bases__)]
        return _seal("class", [*parts, *self._attributes(vars(cls))])

    def _attributes(self, found: Any) -> list[bytes]:
        names = sorted(name for name in found if isinstance(name, str) and name not in _PLACES)
        return [part for name in names for part in (self.encode(name), self._leniently(found[name]))]

    def _code(self, code: types.CodeType) -> bytes:
        found = codes.meaning(code)
        parts = [self._code(c) if isinstance(c, types.CodeType) else self.encode(c) for c in found.constants]
        return _seal("code", [found.shape, *parts])

    def _used(self, code: types.CodeType, names: dict[str, Any]) -> list[bytes]:
        """The globals that code uses, and the modules that it imports while it runs."""
        paths: set[tuple[str, ...]] = set()
        imports: set[tuple[str, int, tuple[str, ...]]] = set()
        for found in codes.all_of(code):
            paths |= found.paths
            imports |= found.imports
        parts = []
        for path in sorted(paths):
            if path[0] in names:
                parts += [self.encode(path[0]), self._follow(names[path[0]], path[1:])]
        return parts + self._imported(imports, names.get("__package__"))

    def _follow(self, value: Any, path: tuple[str, ...]) -> bytes:
        """A global; of a module of the user's own what is taken from it."""
        place = None
        for name in path:
            if not isinstance(value, types.ModuleType) or not origins.is_own(value.__name__):
                break
            place = origins.Place(value.__name__, (name,))
            value = getattr(value, name, None)
        self._note(place)
        return self._leniently(value)

    def _note(self, place: origins.Place | None) -> None:
        if place is not None:
            self.places[place] = None

    def _imported(self, imports: Iterable[tuple[str, int, tuple[str, ...]]], package: str | None) -> list[bytes]:
        parts = []
        for name, level, taken in sorted(imports):
            full = origins.absolute(name, level, package)
            if full is None:
                continue
            parts.append(self._module(full))
            if origins.source(full).path is not None:
                within = [origins.source(f"{full}.{n}") for n in taken]
                parts += [self.encode(found) for found in within if found.path is not None]
        return parts

    def _module(self, name: str) -> bytes:
        found = origins.source(name)
        return self.encode(found) if found.path is not None else self._installed(name, "")

    def _module_source(self, module: origins.Source) -> bytes:
        code = module.code()
        if isinstance(code, bytes):
            return _seal("file", (marshal.dumps(module.name, 2), bulk(memoryview(code))))
        imports = frozenset[tuple[str, int, tuple[str, ...]]]().union(*(c.imports for c in codes.all_of(code)))
        is_package = module.path is not None and module.path.stem == "__init__"
        package = module.name if is_package else module.name.rpartition(".")[0]
        return _seal("source", [marshal.dumps(module.name, 2), self._code(code), *self._imported(imports, package)])

    def _leniently(self, obj: Any) -> bytes:
        """A part of a function or class: what cannot be taken apart counts by its class, and is not noticed to change.

        All that was met on the way is forgotten then: how far it went may differ from one session to the next.
        """
        before = len(self._definitions), len(self._done), dict(self._open), self._labels, len(self.futures)
        places = len(self.places)
        try:
            return self.encode(obj)
        except BaseException:  # whatever the object's own code raises
            count, done, self._open, self._labels, futures = before
            for definition in self._definitions[count:]:
                del self._numbers[id(definition)]
            del self._definitions[count:], self.futures[futures:]
            for known, count in ((self._done, done), (self.places, places)):
                while len(known) > count:
                    known.popitem()
        wrapped = getattr(obj, "__wrapped__", None)
        if wrapped is None and isinstance(obj, functools.cached_property):
            wrapped = obj.func
        return _seal("opaque", (self.encode(type(obj)), self._leniently(wrapped) if wrapped is not None else b""))

    # ---- other objects ----

    def _future(self, future: concurrent.futures.Future[Any]) -> bytes:
        name = self._name_future(future) if self._name_future is not None else None
        if name is not None:
            return _seal("call", (name.encode(),))
        if future not in self.futures:
            self.futures.append(future)
        return _FUTURE + self.futures.index(future).to_bytes(8, "big")

    def _array(self, array: Any, scalar: bool) -> tuple[str, Sequence[bytes]]:
        """A numpy array, or a scalar as one."""
        dtype = array.dtype
        head = [self.encode(scalar), self.encode(array.shape)]
        if dtype.hasobject or dtype.kind == "T":
            return "objects", [*head, self.encode(str(dtype)), self.encode(array.ravel().tolist())]
        if dtype.names is not None:  # one by one: what lies between the fields is not content
            return "fields", [*head, *(p for n in dtype.names for p in (self.encode(n), self.encode(array[n])))]
        described = (dtype.str, dtype.name, sorted((dtype.metadata or {}).items()))
        return "array", [*head, self.encode(described), bulk(_memory(array))]

    def _object(self, obj: Any, kind: type) -> tuple[str, Sequence[bytes]]:
        if getattr(kind, "__reduce__", None) in _OF_SETS:
            state = getattr(obj, "__dict__", None)
            return "set object", [self.encode(kind), self.encode(state), *self._ordered(obj)]
        reducer = copyreg.dispatch_table.get(kind)
        reduced = reducer(obj) if reducer is not None else obj.__reduce_ex__(5)
        if isinstance(reduced, str):
            return "global", self._global(obj, reduced)
        make, args, state, items, pairs, *more = (*reduced, None, None, None, None)[:6]
        parts = [self.encode(make), self.encode(args), self.encode(state)]
        parts += [self.encode(item) for item in (items if items is not None else ())]
        if pairs is not None:
            found = dict(pairs)
            parts.append(b"pairs")
            if isinstance(obj, OrderedDict):
                parts += [self.encode(part) for pair in found.items() for part in pair]
            else:
                parts += self._pairs(found)
        return "object", [*parts, *map(self.encode, more)]

    def _global(self, obj: Any, name: str) -> list[bytes]:
        """An object that pickle takes for its name."""
        module = getattr(obj, "__module__", None) or type(obj).__module__
        parts = [self.encode(type(obj)), self._installed(module, name)]
        if origins.is_own(module):
            parts.append(self._leniently(getattr(obj, "__wrapped__", None)))
            if module not in MAINS:
                self._note(origins.Place(module, tuple(name.split("."))))
        return parts

    def _installed(self, module: str, name: str) -> bytes:
        version = origins.version(module) if self._versions else ""
        return _seal("installed", (module.encode(), name.encode(), version.encode()))

    def _method(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return "method", (self.encode(obj.__func__), self.encode(obj.__self__))

    def _builtin(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        if obj.__self__ is None or isinstance(obj.__self__, types.ModuleType):
            return "builtin", (self._installed(obj.__module__ or "", obj.__qualname__),)
        return self._object(obj, type(obj))

    def _wrapper(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return type(obj).__name__, (self.encode(obj.__func__),)

    def _property(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return "property", [self.encode(part) for part in (obj.fget, obj.fset, obj.fdel)]

    def _whole_module(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return "module", (self._module(obj.__name__),)

    def _slot(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return "slot", (self.encode(obj.__name__),)

    def _only_code(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        return "code", (self._code(obj),)

    def _bytes(self, obj: Any) -> tuple[str, Sequence[bytes]]:
        view = memoryview(obj)
        return type(obj).__name__, (bulk(view.cast("B") if view.c_contiguous else memoryview(view.tobytes())),)


_SPECIAL: dict[type, Callable[[Contents, Any], tuple[str, Sequence[bytes]]]] = {
    types.MethodType: Contents._method,
    types.BuiltinFunctionType: Contents._builtin,
    staticmethod: Contents._wrapper,
    classmethod: Contents._wrapper,
    property: Contents._property,
    types.ModuleType: Contents._whole_module,
    types.MemberDescriptorType: Contents._slot,
    types.GetSetDescriptorType: Contents._slot,
    types.CodeType: Contents._only_code,
    bytearray: Contents._bytes,
    memoryview: Contents._bytes,
    pickle.PickleBuffer: Contents._bytes,
}


def _seal(tag: str, parts: Iterable[bytes]) -> bytes:
    """A digest over the kind and its parts; each part ends by itself, or is the last but one of a fixed number."""
    digest = hashlib.blake2b(tag.encode() + b"\0", digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return _COMPOSITE + digest.digest()


def _name(obj: Any) -> tuple[str, ...]:
    if isinstance(obj, origins.Source):
        return ("source", obj.name)
    code = getattr(obj, "__code__", None)
    shape = hashlib.blake2b(codes.meaning(code).shape).hexdigest() if code is not None else ""
    return (str(obj.__module__), obj.__qualname__, shape)


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _cell


def _as_array(obj: object) -> Any:
    """A numpy array or scalar as an array; None for other things. Subclasses say themselves what they consist of."""
    np = sys.modules.get("numpy")
    if np is None:
        return None
    if type(obj) is np.ndarray or type(obj) is np.memmap:
        return obj
    return np.asarray(obj) if isinstance(obj, np.generic) else None


def _memory(array: Any) -> memoryview:
    """The bytes of an array in C order; not copied if they lie like that."""
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63:  # x87: 10 bytes, the rest is not content
        size = np.dtype(np.longdouble).itemsize
        flat = np.ascontiguousarray(flat.view(np.uint8).reshape(-1, size)[:, :10]).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def _as_frame(obj: object) -> Sequence[Any] | None:
    """Parts of a pandas object that do not depend on how it keeps its columns in blocks; None for other things."""
    pd = sys.modules.get("pandas")
    if pd is None or not hasattr(pd, "DataFrame"):
        return None
    if type(obj) is pd.Series:
        return obj.index, obj.name, obj._values, obj.attrs  # type: ignore[attr-defined]
    if type(obj) is pd.DataFrame:
        columns = [obj.iloc[:, n]._values for n in range(obj.shape[1])]  # type: ignore[attr-defined]
        return obj.index, obj.columns, columns, obj.attrs  # type: ignore[attr-defined]
    return _as_column(obj) if isinstance(obj, pd.api.extensions.ExtensionArray) else None


def _as_column(obj: object) -> Sequence[Any] | None:
    """What pickle keeps of an array of pandas, but not whether it was a part of another, nor what it has been asked."""
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str) or any(part is not None for part in reduced[3:]):
        return None
    make, args, state = (*reduced, None)[:3]
    found: dict[str, Any] = {}
    others = []
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            found |= part
        else:
            others.append(part)
    for name in ("_readonly", "_cache"):
        found.pop(name, None)
    return make, args, others, found
