"""`GenerateScheduler`: which tokens of which chats one model computes next.

Continuous batching over paged blocks: prefill in chunks, decode one token of everybody, share equal beginnings, let in
no more than can stay, and when the blocks run out after all put the newest sequence back in the queue to be recomputed.
Decisions only: nothing here computes.

Asking for a step changes no progress. A step that failed can be dropped and asked for again, with a smaller budget too.
One prefill step and one decode step may be in flight together, but the next of a kind is asked for after `complete`, or
after `launched`, so that the host works on one step while the device computes the next.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from itertools import islice

from lodger.errors import InternalError
from lodger.sched.blocks import BlockPool
from lodger.sched.forecast import Lengths, peak
from lodger.sched.sequence import Sequence
from lodger.sched.step import PENDING, GenerateStep, Row

# A row whose sequence went on with it, and the sequence's preemptions then: after another its blocks are not the row's.
_Taken = tuple[Row, Sequence, int]


class GenerateScheduler:
    """Sequences of one model. Not thread-safe: one owner calls it.

    A sequence leaves by `finish` or `cancel`, never by itself. The oldest running sequence is preempted only by its own
    end, so something always advances.
    """

    def __init__(self, pool: BlockPool, *, max_running: int) -> None:
        self._pool = pool
        self._max_running = max_running
        self._waiting: list[Sequence] = []  # by arrival
        self._running: dict[int, Sequence] = {}
        self._prefills: dict[int, Sequence] = {}  # of those running, the ones that have not computed their prompt
        self._ready: list[Sequence] = []  # of those running, those due their next token, the oldest first
        self._digests: dict[int, list[bytes]] = {}  # of those waiting, so that each prompt is hashed once
        self._promised: set[bytes] = set()  # blocks that a running sequence computes or has computed
        self._promises: dict[int, list[bytes]] = {}  # the same by sequence
        self._unsettled: deque[tuple[GenerateStep, list[_Taken]]] = deque()
        self._lengths = Lengths()
        self._closed = 0  # decode steps for which nobody finds room, unless somebody leaves
        self._arrivals = 0
        self._last_decoded = 0  # arrival of the last row, where one step cannot hold everybody

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def prefill_tokens(self) -> int:
        """Tokens that prefills in work and in the queue still have to compute, prefix hits not yet subtracted."""
        started = sum(len(s.tokens) - s.computed for s in self._prefills.values())
        return started + sum(len(s.tokens) for s in self._waiting)

    @property
    def decoding(self) -> int:
        """Sequences that are past their prompt."""
        return len(self._running) - len(self._prefills)

    def has_prefill(self) -> bool:
        """`next_prefill` would give a step."""
        return bool(self._prefills) or self._admissible() is not None

    def has_decode(self) -> bool:
        """Some sequence is ready for its next token."""
        return any(not sequence.held for sequence in self._ready)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence.

        Raises:
            InternalError: it could not finish even alone; the engine refuses such requests before.
        """
        longest = sequence.prompt_length + sequence.max_new_tokens - 1  # the last token is never fed back
        if self._pool.blocks_for(longest) > self._pool.num_blocks:
            room = self._pool.num_blocks * self._pool.block_size
            raise InternalError(f"sequence {sequence.id} may grow to {longest} tokens, the KV cache holds {room}.")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._queue(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence, wherever it is. An unknown id is fine: it may have ended in the meantime."""
        sequence = self._running.get(sequence_id)
        if sequence is not None:
            self._leave(sequence)
        elif self._digests.pop(sequence_id, None) is not None:
            self._waiting = [s for s in self._waiting if s.id != sequence_id]
            self._closed = 0

    def finish(self, sequence_id: int) -> None:
        """A sequence has its last token. Its full blocks stay findable until their room is needed."""
        if sequence := self._running.get(sequence_id):
            self._lengths.add(len(sequence.tokens) - sequence.prompt_length)
        self.cancel(sequence_id)

    def next_decode(self, token_budget: int) -> GenerateStep | None:
        """One token of every prefilled sequence that nobody holds; in turns where there are more than the budget.

        Without a free block the newest running sequence goes back to the queue, again and again until there is one.
        """
        size = self._pool.block_size
        rows = []
        for sequence in self._turn(token_budget):  # oldest first, so that a victim has no row yet
            start = sequence.computed
            if start < len(sequence.blocks) * size or self._make_room(sequence):
                rows.append(Row(sequence.id, (sequence.tokens[start],), start, sequence.blocks, True))
        return GenerateStep("decode", tuple(rows)) if rows else None

    def _turn(self, most: int) -> list[Sequence]:
        """Those that get their next token now, the oldest first."""
        ready = [sequence for sequence in self._ready if not sequence.held]
        if len(ready) <= most:
            return ready
        chosen = sorted(ready, key=lambda s: (s.arrival <= self._last_decoded, s.arrival))[:most]
        self._last_decoded = chosen[-1].arrival
        return sorted(chosen, key=_arrival)

    def next_prefill(self, token_budget: int) -> GenerateStep | None:
        """Chunks of prompts: those begun first, then waiting ones in order while blocks and `max_running` allow."""
        rows = []
        left = token_budget
        for sequence in sorted(self._prefills.values(), key=_arrival):
            if left > 0:
                rows.append(self._chunk(sequence, left))
                left -= len(rows[-1].tokens)
        while left > 0 and (admitted := self._admissible()):
            self._admit(*admitted)
            rows.append(self._chunk(admitted[0], left))
            left -= len(rows[-1].tokens)
        return GenerateStep("prefill", tuple(rows)) if rows else None

    def complete(self, step: GenerateStep, sampled: Mapping[int, int]) -> None:
        """A step was computed. `sampled`: the next token of each row with `sample`, by sequence id.

        Rows of sequences that were cancelled, finished or preempted in the meantime are ignored.
        """
        self.launched(step)
        self.settle(step, sampled)

    def launched(self, step: GenerateStep) -> None:
        """The device will compute a step before anything that it is given later, and its tokens come later.

        Until `settle` they are PENDING, which is what the next step's rows hold then. At most one launched step may be
        unsettled when another is asked for, and steps settle in the order in which they were launched.
        """
        taken = []
        if step.lane == "decode" and self._closed:
            self._closed -= 1
        for row in step.rows:
            sequence = self._running.get(row.sequence)
            if sequence is None:
                continue
            sequence.computed = row.start + len(row.tokens)
            if row.sample:
                sequence.tokens.append(PENDING)
                if step.lane == "prefill":
                    del self._prefills[sequence.id]
                    insort(self._ready, sequence, key=_arrival)
                if sequence.exhausted:
                    self._ready.remove(sequence)
            taken.append((row, sequence, sequence.preemptions))
        self._unsettled.append((step, taken))

    def settle(self, step: GenerateStep, sampled: Mapping[int, int]) -> None:
        """The oldest launched step was computed. `sampled`: as for `complete`.

        Raises:
            InternalError: an older one is still to be settled.
        """
        oldest, taken = self._unsettled.popleft()
        if oldest is not step:
            raise InternalError("steps were settled in another order than they were launched in.")
        size = self._pool.block_size
        for row, sequence, preemptions in taken:
            end = row.start + len(row.tokens)
            if row.sample:
                sequence.tokens[end] = sampled[row.sequence]
            if row.start // size == end // size:
                continue  # no block became full
            if self._running.get(row.sequence) is sequence and sequence.preemptions == preemptions:
                self._pool.publish(sequence.tokens, sequence.blocks, row.start, end)

    def _queue(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=_arrival)
        self._digests[sequence.id] = self._pool.digests(sequence.tokens[:-1])

    def _admissible(self) -> tuple[Sequence, list[int]] | None:
        """The first waiting sequence that can start now, with the blocks it finds in the cache.

        One whose next block is being computed by another waits for it and lets those behind pass meanwhile: the other
        is running, so this ends, and then it is the first again. So does one whose last token is not known yet. Whoever
        lacks room lets nobody pass.
        """
        if self._closed or len(self._running) >= self._max_running:
            return None
        for sequence in islice(self._waiting, self._max_running):
            if sequence.held or sequence.tokens[-1] == PENDING:
                continue  # preempted a moment ago
            digests = self._digests[sequence.id]
            cached = self._pool.lookup(digests)
            if len(cached) == len(digests) or digests[len(cached)] not in self._promised:
                if self._fits(sequence, cached):
                    return sequence, cached
                if sequence is self._waiting[0]:
                    self._closed = self._pool.block_size  # until then nobody needs fewer blocks than now
                return None
        return None

    def _fits(self, sequence: Sequence, cached: list[int]) -> bool:
        """Room for all its tokens, a block to grow for each that already runs, and no lack of any later.

        What is lacking later is guessed. So it keeps out nobody while all who wait have room now: then at worst the
        newest go back when the others are nearly done, and else the last few would run for long with nobody beside.
        """
        needed = self._pool.blocks_for(len(sequence.tokens)) - len(cached) + self._pool.idle_among(cached)
        if needed + len(self._running) > self._pool.free_count:
            return False
        return not self._lengths or self._all_fit() or self._stays(sequence, needed)

    def _all_fit(self) -> bool:
        """Room for the tokens of all who wait, and a block to grow for everybody."""
        if len(self._waiting) + len(self._running) > self._max_running:
            return False
        needed = sum(self._pool.blocks_for(len(s.tokens)) for s in self._waiting)
        return needed + len(self._waiting) + len(self._running) <= self._pool.free_count

    def _stays(self, sequence: Sequence, needed: int) -> bool:
        """Nobody would have to go back, as far as the lengths of the last answers tell."""
        used = self._pool.num_blocks - self._pool.free_count + needed
        own = self._growth(sequence, self._pool.blocks_for(len(sequence.tokens)))
        return (
            peak([own, *(self._growth(s, len(s.blocks)) for s in self._running.values())], used)
            <= self._pool.num_blocks
        )

    def _growth(self, sequence: Sequence, blocks: int) -> tuple[int, int]:
        """Blocks that it will need beyond these, and these."""
        made = len(sequence.tokens) - sequence.prompt_length
        length = min(self._lengths.expected(made, sequence.arrival), sequence.max_new_tokens)
        last = self._pool.blocks_for(sequence.prompt_length + length - 1)  # the last token is never fed back
        return max(last - blocks, 0), blocks

    def _admit(self, sequence: Sequence, cached: list[int]) -> None:
        self._waiting.remove(sequence)
        self._pool.share(cached)
        fresh = self._pool.allocate(self._pool.blocks_for(len(sequence.tokens)) - len(cached))
        sequence.blocks = (*cached, *fresh)
        sequence.computed = len(cached) * self._pool.block_size
        if not sequence.preemptions:
            sequence.cached_tokens = sequence.computed
        self._running[sequence.id] = self._prefills[sequence.id] = sequence
        promises = [d for d in self._digests.pop(sequence.id)[len(cached) :] if d not in self._promised]
        self._promised.update(promises)
        self._promises[sequence.id] = promises

    def _chunk(self, sequence: Sequence, most: int) -> Row:
        start, known = sequence.computed, len(sequence.tokens)
        end = min(start + most, known)
        blocks = sequence.blocks[: self._pool.blocks_for(end)]
        return Row(sequence.id, tuple(sequence.tokens[start:end]), start, blocks, end == known)

    def _make_room(self, sequence: Sequence) -> bool:
        """One more block for `sequence`; False if it has left, or was itself the newest and had to go."""
        if sequence.id not in self._running:
            return False
        while not self._pool.free_count:
            newest = max(self._running.values(), key=_arrival)
            self._leave(newest)
            newest.preemptions += 1
            self._queue(newest)
            if newest is sequence:
                return False
        sequence.blocks += tuple(self._pool.allocate(1))
        return True

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence.id]
        self._closed = 0
        if self._prefills.pop(sequence.id, None) is None and not sequence.exhausted:
            self._ready.remove(sequence)
        self._promised.difference_update(self._promises.pop(sequence.id))
        self._pool.release(sequence.blocks)
        sequence.blocks = ()
        sequence.computed = 0


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
