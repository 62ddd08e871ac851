"""What fuzzed readers have in common: where they write, what they may raise, how input is spoilt."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from fuzz_seeds import odd_lines, odd_trees, spoilt_bytes, spoilt_lines, spoilt_trees
from hypothesis import strategies as st

from fedsec.errors import FedsecError
from fedsec.transport import Peer, Role

KEPT = ExitStack()
"""Folders and services of readers; they live as long as the process, or until they are closed."""
# A process that collects tests and runs others makes them, too.
atexit.register(KEPT.close)
SOMEBODY = Peer("user", Role.USER, bytes(32), "00" * 32)
LONGEST_ERROR = 20_000
"""Characters, beside what is quoted of the input."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: What it reads.
        read: Reads bytes; every error but a ``FedsecError`` is a defect.
        seeds: Valid bytes.
        trees: What seeds decode to, if they encode plain values.
        encode: Encodes such values.
        lines: Whether seeds are lines of ``key = value``.
        needs: More than valid bytes, such as a round that is not there; the seeds are refused for its want.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    trees: tuple[Any, ...] = ()
    encode: Callable[[Any], bytes] = msgspec.msgpack.encode
    lines: bool = False
    needs: bool = False

    def __str__(self) -> str:
        return self.name


@cache
def folder() -> Path:
    return Path(KEPT.enter_context(tempfile.TemporaryDirectory(prefix="fedsec-fuzz-")))


def read(target: Target, data: bytes) -> FedsecError | None:
    """Let a reader read; returns the error of ours that it raised.

    Raises:
        AssertionError: It raised another one, or one that goes on and on.
    """
    try:
        target.read(data)
    except FedsecError as error:
        if len(str(error)) > LONGEST_ERROR + 2 * len(data):
            raise AssertionError(f"{target.name} read {data[:2000]!r}, and told it at length") from error
        return error
    except Exception as error:
        raise AssertionError(f"{target.name} read {data[:2000]!r}, and raised {error!r}") from error
    return None


def odd(target: Target) -> Iterator[bytes]:
    """Yield a reader's seeds with each value in turn replaced by odd ones."""
    for tree in target.trees:
        yield from map(target.encode, odd_trees(tree))
    for seed in target.seeds if target.lines else ():
        yield from odd_lines(seed)


def spoilt(target: Target) -> st.SearchStrategy[bytes]:
    """Return a strategy for what a reader is given: its seeds, spoilt in every way that fits them."""
    strategies = [spoilt_bytes(list(target.seeds))]
    if target.trees:
        strategies += [spoilt_trees(list(target.trees)).map(target.encode)] * 3
    if target.lines:
        strategies += [spoilt_lines(list(target.seeds))] * 3
    return st.one_of(strategies)
