"""What the scheduler of chats promises under every order of events, tried as a state machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fake_decoder import FakeDecoder, continuation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lodger.sched.blocks import BlockPool
from lodger.sched.generate import GenerateScheduler
from lodger.sched.sequence import Sequence
from lodger.sched.step import PENDING, GenerateStep

BLOCKS, BLOCK_SIZE, MAX_RUNNING = 10, 3, 4
BEGINNINGS = ([1] * 9, [1, 2, 3, 4, 5, 6, 7, 8], [])
budgets = st.integers(1, 12)


class AnyOrder(RuleBasedStateMachine):
    """Requests come, go and are worked on in any order; one prefill and one decode step may be in flight,
    and another one launched."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, BLOCK_SIZE)
        self.scheduler = GenerateScheduler(self.pool, max_running=MAX_RUNNING)
        self.model = FakeDecoder(BLOCKS, BLOCK_SIZE)
        self.alive: dict[int, Sequence] = {}
        self.known: dict[int, int] = {}  # tokens of each sequence when it was last admitted
        self.outcomes: Counter[int] = Counter()
        self.added = 0
        self.in_flight: dict[str, tuple[GenerateStep, dict[int, int]]] = {}
        self.launched: list[tuple[GenerateStep, dict[int, int]]] = []  # their tokens are not known to the scheduler

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        rest=st.lists(st.integers(0, 2), min_size=1, max_size=6),
        length=st.integers(1, 12),
    )
    def add(self, beginning: list[int], rest: list[int], length: int) -> None:
        sequence = Sequence(self.added, beginning + rest, max_new_tokens=length)
        self.added += 1
        self.alive[sequence.id] = sequence
        self.scheduler.add(sequence)

    @rule(budget=budgets)
    def decode(self, budget: int) -> None:
        self._start(self.scheduler.next_decode, budget, self.scheduler.has_decode)

    @rule(budget=budgets)
    def prefill(self, budget: int) -> None:
        self._start(self.scheduler.next_prefill, budget, self.scheduler.has_prefill)

    def _start(self, ask: Callable[[int], GenerateStep | None], budget: int, ready: Callable[[], bool]) -> None:
        lane = ask.__name__.removeprefix("next_")
        self._complete(lane)
        self._settle(1)
        expected = ready()
        running = {sequence.id for sequence in self.alive.values() if sequence.blocks}
        step = ask(budget)
        self.known.update({s.id: len(s.tokens) for s in self.alive.values() if s.blocks and s.id not in running})
        if step is None:
            assert not expected or lane == "decode"  # a decode may end in nothing but preemption
            return
        assert step.lane == lane
        assert 1 <= step.tokens <= budget
        assert max(Counter(row.sequence for row in step.rows).values()) == 1
        assert all(row.tokens for row in step.rows)
        if lane == "decode":
            arrivals = [self.alive[row.sequence].arrival for row in step.rows]
            assert arrivals == sorted(arrivals), "the oldest first"
            assert len(step.rows) <= self.scheduler.decoding
            assert all(row.blocks is self.alive[row.sequence].blocks for row in step.rows), "no copy of a table"
        self.in_flight[lane] = step, self.model.run(self._known(step))

    def _known(self, step: GenerateStep) -> GenerateStep:
        """As the device sees it, where the tokens of the step before are."""
        chosen = self.launched[-1][1] if self.launched else {}
        rows = [
            row._replace(tokens=(*row.tokens[:-1], chosen[row.sequence])) if row.pending else row for row in step.rows
        ]
        assert not any(PENDING in row.tokens for row in rows)
        return step._replace(rows=tuple(rows))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def launch(self, data: st.DataObject) -> None:
        """The device is trusted with a step: the next is asked for before its tokens are known."""
        self._settle(1)
        step, chosen = self.in_flight.pop(data.draw(st.sampled_from(sorted(self.in_flight))))
        self.scheduler.launched(step)
        self.launched.append((step, chosen))

    @rule()
    def settle(self) -> None:
        self._settle(0)

    def _settle(self, left: int) -> None:
        """Of a launched step's rows those count whose sequence still waits for them."""
        while len(self.launched) > left:
            self.scheduler.settle(*self.launched.pop(0))
            self._finish_done()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self._complete(data.draw(st.sampled_from(sorted(self.in_flight))))

    def _complete(self, lane: str) -> None:
        if lane in self.in_flight:
            self._settle(0)
            self.scheduler.complete(*self.in_flight.pop(lane))
            self._finish_done()

    @precondition(lambda self: self.in_flight)
    @rule()
    def fail(self) -> None:
        """The device ran out of memory: the step is dropped and asked for again later."""
        self.in_flight.popitem()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._end(data.draw(st.sampled_from(sorted(self.alive))), self.scheduler.cancel)

    @rule()
    def cancel_one_that_is_gone(self) -> None:
        self.scheduler.cancel(self.added + 1)

    def _finish_done(self) -> None:
        for sequence in list(self.alive.values()):
            if sequence.exhausted and PENDING not in sequence.tokens:
                self._end(sequence.id, self.scheduler.finish)

    def _end(self, sequence_id: int, how: Callable[[int], None]) -> None:
        how(sequence_id)
        sequence = self.alive.pop(sequence_id)
        self.outcomes[sequence_id] += 1
        assert (sequence.blocks, sequence.computed) == ((), 0)
        made = [token for token in sequence.generated if token != PENDING]
        assert made == continuation(sequence.tokens[: sequence.prompt_length], len(made))

    @invariant()
    def blocks_belong_to_whom_they_should(self) -> None:
        self.pool.check()
        assert self.scheduler.running <= MAX_RUNNING
        begun = [s for s in self.alive.values() if s.blocks]
        assert self.scheduler.decoding == sum(self._decodes(s) for s in begun)
        assert self.scheduler.has_decode() == any(self._decodes(s) and not s.exhausted for s in begun)
        assert self.scheduler.running + self.scheduler.waiting == len(self.alive)
        holders: dict[int, list[tuple[int, Sequence]]] = {}
        for sequence in self.alive.values():
            for index, block in enumerate(sequence.blocks):
                holders.setdefault(block, []).append((index, sequence))
        assert self.pool.free_count == BLOCKS - len(holders)
        for sharers in holders.values():
            ends = {tuple(sequence.tokens[: (index + 1) * BLOCK_SIZE]) for index, sequence in sharers}
            assert len(ends) == 1, "one block for two different texts"
            assert len(sharers) == 1 or all(s.computed >= (i + 1) * BLOCK_SIZE for i, s in sharers)

    def _decodes(self, sequence: Sequence) -> bool:
        """It has computed all that was known when it was admitted."""
        return sequence.computed >= self.known[sequence.id]

    def teardown(self) -> None:
        """Whatever happened before, all that is left comes to its end."""
        for lane in ("prefill", "decode"):
            self._complete(lane)
        self._settle(0)
        for _ in range(2_000):
            if not self.alive:
                break
            before = len(self.alive), self.model.computed
            for ask in (self.scheduler.next_decode, self.scheduler.next_prefill):
                if (step := ask(5)) is not None:
                    self.scheduler.complete(step, self.model.run(step))
                    self._finish_done()
            assert (len(self.alive), self.model.computed) != before, "work is left and nothing runs"
        assert not self.alive, "it never ends"
        assert self.pool.free_count == BLOCKS
        assert self.outcomes == Counter(range(self.added)), "a request without one outcome, or with two"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


@settings(max_examples=80, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 14), min_size=1, max_size=30),
    made=st.one_of(st.integers(1, 16), st.lists(st.integers(1, 16), min_size=30, max_size=30)),
    told=st.booleans(),
)
def test_while_more_wait_than_have_room_nobody_goes_back_if_answers_are_as_long_as_expected(
    prompts: list[int], made: int | list[int], told: bool
) -> None:
    """Either all are as long as the last ones, whatever limit they tell, or all reach their limits."""
    blocks, size = 40, 3
    pool = BlockPool(blocks, size)
    scheduler, model = GenerateScheduler(pool, max_running=12), FakeDecoder(blocks, size)
    lengths = made if isinstance(made, list) else [made] * len(prompts)
    alive: dict[int, Sequence] = {}

    def turn() -> None:
        for ask in (scheduler.next_decode, scheduler.next_prefill):
            if (step := ask(1000)) is not None:
                scheduler.complete(step, model.run(step))
            for sequence in [s for n, s in alive.items() if len(s.generated) >= lengths[n]]:
                scheduler.finish(alive.pop(sequence.id).id)

    def add(number: int, prompt: int, most: int) -> Sequence:
        alive[number] = Sequence(number, [5 + number] * prompt, max_new_tokens=most)
        scheduler.add(alive[number])
        return alive[number]

    lengths = [*lengths[: len(prompts)], *([100] if isinstance(made, list) else [made]), 1]
    add(len(prompts), 1, lengths[len(prompts)])
    while alive:  # one answer that the others are expected to resemble, or that is longer than all limits
        turn()
    limits = [length if told or isinstance(made, list) else 70 for length in lengths]
    crowd = [add(n, prompt, limits[n]) for n, prompt in enumerate(prompts)]
    wall = add(len(prompts) + 1, blocks * size, 1)  # has never room beside others
    for _ in range(1_000):
        if wall.id in alive:
            turn()
    assert wall.id not in alive, "it never ends"
    assert [sequence.preemptions for sequence in crowd] == [0] * len(crowd)
    assert all(s.generated == continuation(s.tokens[: s.prompt_length], len(s.generated)) for s in crowd)
