"""A chat model of the native engine: messages to a prompt, tokens to text as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

import msgspec

from lodger.budget import Budget
from lodger.engines.native_model import ServedModel, Serving, check_ids, out_of_memory
from lodger.errors import ContextExceeded, EmptyInput, InvalidRequest, Unsupported
from lodger.runtime.generating import GenerateLane, Generation, Made
from lodger.runtime.kv import KVCache
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Rules, Sampler
from lodger.sched.sequence import Sequence
from lodger.tasks import ChatTask, Delta, FinishReason, GenerateTask, StopRules, Usage
from lodger.text.stops import StopMatcher
from lodger.text.template import ChatTemplate
from lodger.text.tokenizer import Tokenizer

_COUNTED = 4  # times the context length: prompts up to this are counted exactly before they are refused
Arrivals = asyncio.Queue[tuple[int, Made]]  # index of the choice, and what became of it


class GenerateModel(ServedModel):
    """Serves chat and completion tasks."""

    def __init__(self, serving: Serving, runner: Runner, cache: KVCache, budget: Budget) -> None:
        self._lane = GenerateLane(serving.uid, runner, cache, budget.step_tokens, budget.sequences)
        self._template = ChatTemplate.load(serving.facts.path)
        self._device = runner.device
        super().__init__(serving, self._lane, cache)

    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        """
        Raises:
            ContextExceeded, EmptyInput, Unsupported, InvalidRequest: before anything is made.
            OutOfMemory, Cancelled, InternalError: at any time.
        """
        with self._counted():
            prompt = await self._in_pool(lambda: self._prompt(task))
            self._check_prompt(prompt)
            arrivals: Arrivals = asyncio.Queue()
            choices: list[_Choice] = []
            try:
                with out_of_memory(f"{task.n} answers to {len(prompt):,} tokens were begun"):
                    for index in range(task.n):
                        choices.append(self._start(task, prompt, index, arrivals))
                async for delta in self._follow(choices, arrivals):
                    done = all(choice.finished for choice in choices)
                    usage = Usage(len(prompt), sum(choice.tokens for choice in choices)) if done else None
                    yield msgspec.structs.replace(delta, usage=usage)
            finally:
                self._cancel(choices)

    async def _follow(self, choices: list[_Choice], arrivals: Arrivals) -> AsyncIterator[Delta]:
        """Deltas of all choices in the order in which their tokens come, until each has its finish reason."""
        while not all(choice.finished for choice in choices):
            index, made = await arrivals.get()
            if made.error is not None:
                raise made.error
            choice = choices[index]
            if choice.finished:  # its stop string was met while the next token was on its way
                continue
            text, reason = choice.push(made)
            if reason is not None and made.finish is None:
                self._cancel([choice])
            if text or reason is not None:
                yield Delta(index, text, reason)

    def _prompt(self, task: GenerateTask) -> list[int]:
        """Token ids; of a prompt far beyond the context some number beyond it."""
        tokenizer, most = self._serving.tokenizer, _COUNTED * self.info.context_length
        if isinstance(task, ChatTask):
            if self._template is None:
                raise Unsupported(f"{self._serving.uid} has no chat template.", hint="Use /v1/completions.")
            text = self._template.render(task.messages, tools=task.tools, **task.template_args)
            return tokenizer.encode(text, special=False, limit=most)
        if isinstance(task.prompt, str):
            return tokenizer.encode(task.prompt, special=True, limit=most)
        return check_ids(task.prompt, self._serving.facts, param="prompt")

    def _check_prompt(self, prompt: list[int]) -> None:
        limit = self.info.context_length
        if not prompt:
            raise EmptyInput("the prompt is empty: there is nothing to answer.", param="prompt")
        if len(prompt) >= limit:
            # Digits in groups: RAGFlow takes "429" anywhere in an error for a rate limit, and repeats it for minutes.
            count = f"{len(prompt):,}" if len(prompt) <= _COUNTED * limit else f"more than {_COUNTED * limit:,}"
            raise ContextExceeded(
                f"the prompt has {count} tokens; {self._serving.uid} serves {limit:,} of prompt and answer together.",
                hint="Shorten the prompt.",
                param="messages",
            )

    def _start(self, task: GenerateTask, prompt: list[int], index: int, arrivals: Arrivals) -> _Choice:
        """Hand one choice to the device. Without a seed every choice gets its own randomness."""
        facts, rules = self._serving.facts, task.stopping
        seed = None if task.sampling.seed is None else task.sampling.seed + index
        generation = Generation(
            sequence=Sequence(next(self._ids), prompt, max_new_tokens=self._most_tokens(rules, len(prompt))),
            sampler=Sampler(Rules.of(task.sampling, facts.generation), seed, prompt, facts.vocab_size, self._device),
            stops=frozenset() if rules.ignore_eos else frozenset(facts.eos_token_ids),
            deliver=_deliver_to(arrivals, index),
        )
        self._serving.loop.post(lambda: self._lane.add(generation))
        return _Choice(generation, self._serving.tokenizer, rules.stop)

    def _most_tokens(self, rules: StopRules, prompt: int) -> int:
        room = self.info.context_length - prompt
        if rules.max_tokens is None:
            return room
        if rules.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {rules.max_tokens}, and at least 1 is needed.", param="max_tokens")
        return min(rules.max_tokens, room)

    def _cancel(self, choices: list[_Choice]) -> None:
        for choice in choices:
            self._serving.loop.post(partial(self._lane.cancel, choice.sequence_id))


class _Choice:
    """The text of one choice, as its tokens come."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.sequence_id = generation.sequence.id
        self.tokens = 0  # made, the one that ends the text included
        self.finished = False
        self._ends = generation.stops
        self._detokenizer = tokenizer.detokenizer()
        self._matcher = StopMatcher(stops)

    def push(self, made: Made) -> tuple[str, FinishReason | None]:
        """The text that can be shown now, and why the choice has ended if it has."""
        piece = ""
        if made.token is not None:
            self.tokens += 1
            piece = "" if made.token in self._ends else self._detokenizer.push(made.token)
        if made.finish is not None:
            piece += self._detokenizer.flush()
        text, stopped = self._matcher.push(piece)
        if made.finish is not None:
            text += self._matcher.flush()
        reason: FinishReason | None = "stop" if stopped else made.finish
        self.finished = reason is not None
        return text, reason


def _deliver_to(arrivals: Arrivals, index: int) -> Callable[[Made], None]:
    """From the device's thread into the event loop that asks for this."""
    loop = asyncio.get_running_loop()

    def deliver(made: Made) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(arrivals.put_nowait, (index, made))

    return deliver
