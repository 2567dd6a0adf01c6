"""`BlockPool`: which physical block of the KV cache belongs to whom. Block ids only, no tensors.

A full block whose tokens are all computed is published under a digest of its tokens and of everything before them, so a
later sequence with the same beginning takes the same blocks. Published blocks that nobody uses stay until their room is
needed, the least recently used first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from lodger.errors import InternalError


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, counted by reference."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, hold nothing; the last is taken first
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, still published; the first is evicted first
        self._digest: dict[int, bytes] = {}  # of every block whose content is known
        self._block: dict[bytes, int] = {}  # the one block that answers for a digest

    @property
    def free_count(self) -> int:
        """Blocks that `allocate` can give, published ones included."""
        return len(self._blank) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, n: int) -> list[int]:
        """`n` blocks with one reference each; published ones are forgotten only when no blank one is left.

        Raises:
            InternalError: fewer than `n` are free. The caller looks at `free_count` first.
        """
        if n > self.free_count:
            raise InternalError(f"{n} KV blocks asked, {self.free_count} of {self.num_blocks} free.")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(n)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def digests(self, tokens: Sequence[int]) -> list[bytes]:
        """The chained digest of each full block of `tokens`."""
        found: list[bytes] = []
        parent = b""
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            parent = _chain(parent, tokens[end - self.block_size : end])
            found.append(parent)
        return found

    def lookup(self, digests: Iterable[bytes]) -> list[int]:
        """Blocks of the longest published beginning. Takes no reference."""
        blocks: list[int] = []
        for digest in digests:
            block = self._block.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def match_prefix(self, tokens: Sequence[int]) -> list[int]:
        """Blocks of the longest published beginning of `tokens`, with a reference taken on each.

        Never all of `tokens`: at least the last one is left to compute, for its logits are wanted.
        """
        blocks = self.lookup(self.digests(tokens[:-1]))
        self.share(blocks)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference on each of these blocks, which are in use or published."""
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
            self._references[block] += 1

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these are free now, so that sharing them takes from `free_count`."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def publish(self, tokens: Sequence[int], blocks: Sequence[int], start: int, end: int) -> None:
        """Positions `start` to `end` of a sequence were just computed: make the blocks that became full findable.

        Args:
            tokens: of the sequence, at least `end` of them.
            blocks: its block table from position 0. Everything before `start` was published already.
        """
        size = self.block_size
        for index in range(start // size, end // size):
            parent = self._digest[blocks[index - 1]] if index else b""
            digest = _chain(parent, tokens[index * size : (index + 1) * size])
            self._digest[blocks[index]] = digest
            self._block.setdefault(digest, blocks[index])

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference on each; the ends of sequences are evicted before their beginnings."""
        for block in reversed(blocks):
            if self._references[block] < 1:
                raise InternalError(f"KV block {block} was released more often than taken.")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)

    def _retire(self, block: int) -> None:
        digest = self._digest.get(block)
        if digest is not None and self._block.setdefault(digest, block) == block:
            self._idle[block] = None
        else:  # never full, or the twin of a block that is still there
            self._digest.pop(block, None)
            self._blank.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block[self._digest.pop(block)]
        return block

    def check(self) -> None:
        """
        Raises:
            InternalError: a block is neither free nor in use, or both, or is found under a wrong digest.
        """
        used = [block for block, count in enumerate(self._references) if count > 0]
        everything = sorted([*self._blank, *self._idle, *used])
        if everything != list(range(self.num_blocks)) or min(self._references, default=0) < 0:
            raise InternalError(f"KV blocks are lost or doubled: {len(everything)} accounted of {self.num_blocks}.")
        if any(self._digest.get(block) != digest for digest, block in self._block.items()):
            raise InternalError("A KV block is published under a digest that is not its own.")
        if any(block in self._digest for block in self._blank):
            raise InternalError("A blank KV block still has a digest.")
        if any(self._block.get(self._digest.get(block, b"")) != block for block in self._idle):
            raise InternalError("An idle KV block cannot be found.")


def _chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
