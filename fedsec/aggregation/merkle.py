"""A Merkle tree over the included set: a hospital checks that it was counted without learning who else was.

Leaves and inner nodes are hashed under different labels (RFC 6962, section 2.1, second preimages). A leaf
holds the random upload id, so the hashes on a path do not let anyone guess a name.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.aggregation.signing import digest


def leaf(round_key: bytes, hospital: str, upload_id: bytes, header: bytes) -> bytes:
    """Return the leaf hash of one included upload; ``header`` is its header digest."""
    return digest("leaf", round_key, hospital.encode(), upload_id, header)


class Tree:
    """The tree over at least one leaf, with every level, for paths of many leaves.

    Attributes:
        root: The root, over the number of leaves and the top node.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))
        self.root = digest("root", len(leaves).to_bytes(8, "big"), self._levels[-1][0])

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the sibling hashes from leaf ``index`` up; an unpaired node has no sibling on its level."""
        siblings = []
        for level in self._levels[:-1]:
            if (sibling := index ^ 1) < len(level):
                siblings.append(level[sibling])
            index //= 2
        return tuple(siblings)


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over at least one leaf."""
    return Tree(leaves).root


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the sibling hashes from leaf ``index`` up; see :meth:`Tree.path`."""
    return Tree(leaves).path(index)


def root_from_path(leaf_hash: bytes, index: int, count: int, siblings: Sequence[bytes]) -> bytes | None:
    """Return the root that a path leads to, or None when the path has a wrong length for the tree."""
    if not 0 <= index < count:
        return None
    remaining, node, width = list(siblings), leaf_hash, count
    while width > 1:
        if (index ^ 1) < width:
            if not remaining:
                return None
            sibling = remaining.pop(0)
            node = _node(node, sibling) if index % 2 == 0 else _node(sibling, node)
        index, width = index // 2, (width + 1) // 2
    return None if remaining else digest("root", count.to_bytes(8, "big"), node)


def _above(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs + [level[-1]] * (len(level) % 2)


def _node(left: bytes, right: bytes) -> bytes:
    return digest("node", left, right)
