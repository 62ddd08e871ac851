"""Decoding a class of message for the first time, in several threads at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fedsec

_TAKES_APART = ("msgspec.msgpack.decode", "msgspec.json.decode", "msgspec.convert")

_FIRST_TIMES = """
import sys
import threading
from typing import Annotated, Literal

import msgspec

from fedsec.transport.decoding import decode_as

THREADS = 4
sys.setswitchinterval(1e-6)


def fresh() -> type:
    class Inner(msgspec.Struct, frozen=True, array_like=True):
        key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=32)]
        count: Annotated[int, msgspec.Meta(ge=0, le=255)]
        kind: Literal["one", "two"] = "one"

    class Outer(msgspec.Struct, frozen=True, array_like=True):
        numbers: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=5)]
        inner: Annotated[tuple[Inner, ...], msgspec.Meta(max_length=128)] | None
        kind: Literal["one", "two", "three"] = "one"

    return Outer


def decode(kind: type) -> None:
    together.wait()
    decoded.append(decode_as(encoded, kind))


encoded = msgspec.msgpack.encode([[1, 2], [[b"k" * 32, 3, "two"]], "three"])
together = threading.Barrier(THREADS)
for _ in range(100):
    decoded: list[object] = []
    kind = fresh()
    threads = [threading.Thread(target=decode, args=(kind,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == THREADS
    assert all(msgspec.msgpack.encode(one) == encoded for one in decoded)
"""


def test_threads_that_decode_a_class_for_the_first_time_do_not_crash_the_process() -> None:
    """With ``msgspec.msgpack.decode`` this dies of a segmentation fault, so it has a process of its own."""
    command = [sys.executable, "-c", _FIRST_TIMES]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_no_class_is_taken_apart_by_the_first_thread_that_decodes_it() -> None:
    """``decode_as`` does it one at a time, decoders of modules are made at import."""
    calls = [
        f"{path.parent.name}/{path.name}: {ast.unparse(node)}"
        for path in Path(fedsec.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _TAKES_APART
    ]
    assert sorted(calls) == ["scenario/scenario.py: msgspec.convert(merged, cls)"]
