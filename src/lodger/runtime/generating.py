"""`GenerateLane`: the chats of one model on the device, from their first chunk to their last token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lodger.errors import Cancelled, LodgerError
from lodger.runtime.kv import KVCache
from lodger.runtime.likely import Probable
from lodger.runtime.recovery import run_or_split
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Sampler
from lodger.runtime.stepper import Launched, Stepper
from lodger.sched.arbiter import Claim, prefill_tokens
from lodger.sched.blocks import BlockPool
from lodger.sched.generate import GenerateScheduler
from lodger.sched.sequence import Sequence
from lodger.sched.step import PENDING, GenerateStep, Lane, Row
from lodger.tasks import FinishReason

MAX_RUNNING = {"cpu": 64, "cuda": 256}  # sequences in one step: the rows of logits that the plan counts memory for
_SMALLEST_CHUNK = 32  # tokens; a prompt is not split further when memory is short
# Seconds that a step waits for guides, so that their chats go on together: while the device computes, and while nothing
# else is to be done.
_WAIT_BESIDE, _WAIT_ALONE = 0.002, 0.02


class Made(NamedTuple):
    """What became of one sequence in one step: a token, or its end, or both. After an end nothing more comes."""

    token: int | None = None
    finish: FinishReason | None = None
    error: LodgerError | None = None
    probable: Probable | None = None  # where the token was chosen, for those who ask


class Guide(Protocol):
    """Says what an answer may go on with (`lodger.text.grammar.Guide`); from `advance` to `ready` it does not know."""

    mask: bytes
    over: bool
    error: LodgerError | None
    ready: bool

    def advance(self, token: int) -> Future[None]: ...


@dataclass(eq=False, slots=True)
class Generation:
    """One choice of one request."""

    sequence: Sequence
    sampler: Sampler
    stops: frozenset[int]  # token ids that end the text and are not part of it
    deliver: Callable[[Made], None]  # called on the device's thread
    guide: Guide | None = None  # `GenerateLane.resume` is called whenever it is ready again
    last: int = field(init=False)  # position of its last token

    def __post_init__(self) -> None:
        self.last = self.sequence.prompt_length + self.sequence.max_new_tokens - 1


class GenerateLane:
    """Called by the device's thread only, apart from the constructor.

    Args:
        most: sequences in one step; the device's own limit where that is lower.
    """

    paced = False  # a chunk of a prompt reads all weights, however short it is
    launched = beside = False
    busy_beside = 0

    def __init__(self, name: str, runner: Runner, cache: KVCache, step_tokens: int, most: int = 256) -> None:
        self.name = name
        self.step_tokens = step_tokens
        self._stepper: Stepper | None = None  # None while the model sleeps
        self._resting: Stepper | None = None
        self._launched: Launched | None = None  # its tokens are not known yet
        self._cache = cache
        self._most = most
        self._generations: dict[int, Generation] = {}
        self._guided: set[int] = set()  # sequences that have a guide
        self._guides: dict[int, Future[None]] = {}  # sequence -> when its guide is ready; those waited for
        self.wake(runner)

    def begin(self) -> None:
        """`wake` has left nothing to do."""

    @property
    def decoding(self) -> bool:
        """Chats wait for their next token. A chunk that ends no prompt is not waited for while there is more to come:
        the next one is launched behind it, as a full step."""
        launched = self._launched
        if launched is None or self._scheduler.has_decode():
            return self._scheduler.has_decode()
        return any(row.sample for row in launched.step.rows) or not self._scheduler.has_prefill()

    def sleep(self) -> None:
        """After `close`: forget the runner, and what the cache held."""
        assert self._stepper is not None
        self._stepper.rest()
        self._resting, self._stepper = self._stepper, None

    def forget(self) -> None:
        """After `sleep`: what was captured goes too."""
        self._resting = None

    def wake(self, runner: Runner) -> None:
        self._max_running = min(self._most, MAX_RUNNING[runner.device.type])
        if self._resting is not None and self._resting.resume(runner):
            self._stepper, self._resting = self._resting, None
        else:
            self._resting = None
            self._stepper = Stepper(runner, self._cache, self._max_running)
            if runner.device.type == "cuda":
                self._stepper.warm_up(self.step_tokens)
        pool = BlockPool(self._cache.blocks, self._cache.block_size)
        self._scheduler = GenerateScheduler(pool, max_running=self._max_running)

    def add(self, generation: Generation) -> None:
        if self._stepper is None:
            generation.deliver(Made(error=Cancelled("the model sleeps.")))
            return
        self._generations[generation.sequence.id] = generation
        if generation.guide is not None:
            self._guided.add(generation.sequence.id)
        self._scheduler.add(generation.sequence)

    def cancel(self, sequence_id: int) -> None:
        """Nobody waits for this sequence any more; it gets no further word."""
        if self._generations.pop(sequence_id, None):
            self._guided.discard(sequence_id)
            self._scheduler.cancel(sequence_id)

    def resume(self, sequence_id: int) -> None:
        """The guide of this sequence is ready, perhaps."""
        generation = self._generations.get(sequence_id)
        if generation is None or generation.guide is None or not generation.guide.ready:
            return
        sequence = generation.sequence
        if sequence.tokens[-1] == PENDING:
            return  # that was before its last step
        if generation.guide.error is not None:
            self._end(sequence_id, Made(error=generation.guide.error))
        elif generation.guide.over:
            self._end(sequence_id, Made(finish="stop"))
        elif sequence.exhausted:
            self._end(sequence_id, Made(finish="length"))
        else:
            sequence.held = False

    def _ask_guides(self) -> None:
        """Let those chats go on whose guides are ready, after a moment. Later ones call `resume`."""
        if not self._guides:
            return
        guides, self._guides = self._guides, {}
        wait(guides.values(), _WAIT_ALONE if self._launched is None else _WAIT_BESIDE)
        for sequence_id in guides:
            self.resume(sequence_id)

    def close(self) -> None:
        self._settle()
        for sequence_id in list(self._generations):
            self._end(sequence_id, Made(error=Cancelled("the model was unloaded.")))

    def decode(self) -> None:
        """One token of every running chat; on a GPU its result is delivered while the next step runs.

        A chat with a guide misses every other step beside others: its next token waits for the guide to know the last.
        """
        self._ask_guides()
        step = self._scheduler.next_decode(self._max_running)
        if step is None:
            self._settle()
        else:
            self._run(step)

    def claims_beside(self) -> Iterable[Claim]:
        return ()

    def step_beside(self) -> None:
        """There are none."""

    def claims(self, budget: int) -> Iterable[Claim]:
        if self._scheduler.has_prefill():
            tokens = min(self._scheduler.prefill_tokens, self._chunk(budget))
            yield Claim(self.name, "prefill", tokens, urgent=False)

    def micro_step(self, lane: Lane, budget: int) -> int:
        step = self._scheduler.next_prefill(self._chunk(budget))
        self._run(step)
        return 0 if step is None else step.tokens

    def deliver(self, *, wait: bool) -> None:
        """`decode` hands out."""

    def _chunk(self, budget: int) -> int:
        """Most tokens of the next prefill step."""
        waiting = self._scheduler.waiting + self._scheduler.running - self._scheduler.decoding
        return prefill_tokens(budget, self.step_tokens, waiting, self._scheduler.decoding)

    def _run(self, step: GenerateStep | None) -> None:
        if step is not None:
            run_or_split(step, self._compute, self._halves, self._fail)

    def _compute(self, step: GenerateStep) -> None:
        generations = self._generations
        rows = tuple([row for row in step.rows if row.sequence in generations])
        if not rows:
            return
        step = GenerateStep(step.lane, rows)
        assert self._stepper is not None
        samplers = [generations[row.sequence].sampler for row in rows if row.sample]
        try:
            launched = self._stepper.launch(step, samplers)
        except BaseException:
            self._settle()  # what the step before chose may be lost on the device
            raise
        self._scheduler.launched(step)
        for row in rows if self._guided else ():
            if row.sample and row.sequence in self._guided:
                generations[row.sequence].sequence.held = True
        self._settle()
        self._launched = launched
        if not self._stepper.overlaps:
            self._settle()

    def _settle(self) -> None:
        """Deliver the tokens of the step that was launched before, if there is one."""
        launched, self._launched = self._launched, None
        if launched is None:
            return
        sampled = [row for row in launched.step.rows if row.sample]
        tokens = launched.tokens()
        chosen = {row.sequence: token for row, token in zip(sampled, tokens, strict=True)}
        self._scheduler.settle(launched.step, chosen)
        likely = launched.likely()
        for place, (row, token) in enumerate(zip(sampled, tokens, strict=True)):
            generation = self._generations.get(row.sequence)
            if generation is None:
                continue  # it had ended before, or nobody waits any more
            probable = likely.get(place)
            if token in generation.stops:
                self._end(row.sequence, Made(token, finish="stop", probable=probable))
            elif generation.guide is not None:
                self._guides[row.sequence] = generation.guide.advance(token)
                generation.deliver(Made(token, probable=probable))
            elif row.start + len(row.tokens) >= generation.last:
                self._end(row.sequence, Made(token, finish="length", probable=probable))
            else:
                generation.deliver(Made(token, probable=probable))

    def _halves(self, step: GenerateStep) -> tuple[GenerateStep, GenerateStep] | None:
        """Of a step that failed, with the tokens that were PENDING then."""
        return _halves(step._replace(rows=tuple(map(self._known, step.rows))))

    def _known(self, row: Row) -> Row:
        if not row.pending or row.sequence not in self._generations:
            return row
        return row._replace(tokens=(*row.tokens[:-1], self._generations[row.sequence].sequence.tokens[row.end - 1]))

    def _fail(self, step: GenerateStep, error: LodgerError) -> None:
        for sequence_id in {row.sequence for row in step.rows} & self._generations.keys():
            self._end(sequence_id, Made(error=error))

    def _end(self, sequence_id: int, made: Made) -> None:
        self._scheduler.finish(sequence_id)
        self._guided.discard(sequence_id)
        self._generations.pop(sequence_id).deliver(made)


def _halves(step: GenerateStep) -> tuple[GenerateStep, GenerateStep] | None:
    """Half of the rows each, or half of the one row's tokens."""
    rows = step.rows
    if len(rows) > 1:
        middle = len(rows) // 2
        return step._replace(rows=rows[:middle]), step._replace(rows=rows[middle:])
    row = rows[0]
    if len(row.tokens) < 2 * _SMALLEST_CHUNK:
        return None
    middle = len(row.tokens) // 2
    first = row._replace(tokens=row.tokens[:middle], sample=False)
    second = Row(row.sequence, row.tokens[middle:], row.start + middle, row.blocks, row.sample)
    return step._replace(rows=(first,)), step._replace(rows=(second,))
