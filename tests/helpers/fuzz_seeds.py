"""Valid messages of every type, made from the types alone, and ways to spoil bytes and trees of values."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

PACKAGES = ("fedsec.aggregation", "fedsec.serving", "fedsec.transport")


def messages() -> list[type[msgspec.Struct]]:
    """Return every type of message that can come from another process, sorted by name."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    kinds = _below(msgspec.Struct)
    found = {one for one in kinds if one.__struct_fields__ and one.__module__.startswith(PACKAGES)}
    return sorted(
        (one for one in found if one.__struct_fields__), key=lambda one: (one.__module__, one.__name__)
    )


def _below(kind: type) -> Iterator[type[msgspec.Struct]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def example(kind: type[msgspec.Struct]) -> Any:
    """Return a message of a type as plain values: what its encoding decodes to without the type."""
    return _example(inspect.type_info(kind))


def _example(info: inspect.Type) -> Any:
    for kind, make in _MADE.items():
        if isinstance(info, kind):
            return make(info)
    raise TypeError(f"no example of {info}: say here how one is made")


def _struct(info: inspect.StructType) -> Any:
    values = {field.encode_name: _example(field.type) for field in info.fields}
    if info.array_like:
        return list(values.values())
    return {"type": info.tag, **values} if info.tag else values


def _first(info: inspect.UnionType) -> Any:
    return _example(next(one for one in info.types if not isinstance(one, inspect.NoneType)))


_MADE: dict[type[inspect.Type], Callable[[Any], Any]] = {
    inspect.StructType: _struct,
    inspect.VarTupleType: lambda info: [_example(info.item_type)] * max(1, info.min_length or 0),
    inspect.TupleType: lambda info: [_example(one) for one in info.item_types],
    inspect.UnionType: _first,
    inspect.LiteralType: lambda info: info.values[0],
    inspect.BytesType: lambda info: b"\1" * (info.min_length or 16),
    inspect.IntType: lambda info: max(1, info.ge or 0),
    inspect.FloatType: lambda info: max(1.0, info.ge or 0.0),
    inspect.StrType: lambda _info: "a",
    inspect.BoolType: lambda _info: True,
    inspect.DictType: lambda _info: {},
}

DEEP = 3000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**32, 2**63, -(2**63), 2**64 - 1, 0.0, -1.0, 1e308, float("inf"),
    float("nan"), "", "a" * 300, "\0", "../../x", "\ud7ff", b"", b"\0" * 32, b"\xff" * 70_000, [], [[]],
    {}, {"": 1}, ["a"] * 300, [0] * 5000,
)  # fmt: skip
"""Values of every kind, most of them where no field expects them."""


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in a tree of dictionaries and lists."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a copy of a tree with the value at a path changed."""
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(copy[path[0]], path[1:], change)
    return copy


def odd_trees(tree: Any) -> Iterator[Any]:
    """Yield a tree with each value in turn replaced by each odd one."""
    for path in places(tree):
        for odd in ODD:
            yield replaced(tree, path, lambda _value, odd=odd: odd)


@st.composite
def spoilt_trees(draw: st.DrawFn, seeds: list[Any]) -> Any:
    """Draw a valid tree with up to three values taken out, doubled, or replaced by odd ones."""
    tree = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        tree = replaced(tree, path, lambda value: draw(_changed(value)))
    return tree


def _changed(value: Any) -> st.SearchStrategy[Any]:
    """Return strategies for what may stand in the place of a value."""
    choices: list[st.SearchStrategy[Any]] = [st.sampled_from(ODD)]
    if isinstance(value, bool | int):
        choices.append(st.integers(-(2**63), 2**64 - 1))
    elif isinstance(value, float):
        choices.append(st.floats())
    elif isinstance(value, str):
        choices.append(st.text(max_size=80))
    elif isinstance(value, bytes):
        choices.append(spoilt_bytes([value]))
    elif isinstance(value, list):
        choices.append(st.sampled_from([value[1:], value + value, value[::-1], [*value, None]]))
    elif isinstance(value, dict):
        less = [{k: v for k, v in value.items() if k != key} for key in value]
        choices.append(st.sampled_from([*less, {**value, "more": 1}]))
    return st.one_of(choices)


LENGTHS = (
    b"\xff",
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    bytes(8),
    b"\xff" * 8,
)
NESTS = (b"\x91", b"\x81\xa1a", b"[", b'{"a":')
"""Lists and tables that begin in each other, in MessagePack and in JSON."""


@st.composite
def spoilt_bytes(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw valid bytes with up to four places cut out, cut off, doubled or overwritten; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 16)))
        how = draw(st.integers(0, 6))
        if how == 0:
            del data[start:end]
        elif how == 1:
            del data[start:]
        elif how == 2:
            data[start:start] = data[start:end] * draw(st.integers(1, 50))
        elif how == 3:
            data[start:end] = draw(st.binary(max_size=16))
        elif how == 4:
            data[start:start] = draw(st.sampled_from(NESTS)) * DEEP
        else:
            length = draw(st.sampled_from(LENGTHS))
            data[start : start + len(length)] = length
    return bytes(data)


VALUES = (
    "inf", "-inf", "nan", "-1", "0", "1e400", "9" * 400, "9" * 5000, "true", '""', '"\\u0000"', "[]", "{}",
    '"\\u0000/x"', "[[1]]", "[" * DEEP, "{a=" * 500, "[{}]", "1979-05-27", '"' + "a" * 5000 + '"', "'''",
    "0x", "\ud7ff",
)  # fmt: skip


def odd_lines(seed: bytes) -> Iterator[bytes]:
    """Yield a file of ``key = value`` with each value in turn replaced by each odd one."""
    lines = seed.decode().split("\n")
    for number, line in enumerate(lines):
        key, equals, _ = line.partition("=")
        for odd in VALUES if equals else ():
            changed = [*lines[:number], f"{key}= {odd}", *lines[number + 1 :]]
            yield "\n".join(changed).encode("utf-8", "surrogatepass")


@st.composite
def spoilt_lines(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a file of ``key = value``, up to three lines taken out, doubled, or with odd keys or values."""
    lines = draw(st.sampled_from(seeds)).decode().split("\n")
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        key, equals, value = lines[number].partition("=")
        odd = draw(st.sampled_from(VALUES))
        choices = [
            [],
            [lines[number]] * 2,
            [f"{key}{equals}{odd}"],
            [f"{odd}{equals}{value}"],
            [f"{key}.a{equals}{value}"],
        ]
        lines[number : number + 1] = draw(st.sampled_from(choices))
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
