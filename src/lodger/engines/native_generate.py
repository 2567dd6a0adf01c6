"""A chat model of the native engine: messages to a prompt, tokens to text as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from lodger.budget import Budget
from lodger.engines.native_answer import Answer, Arrivals, Choice
from lodger.engines.native_model import ServedModel, Serving, check_ids
from lodger.errors import ContextExceeded, EmptyInput, InvalidRequest, Unsupported
from lodger.runtime.generating import GenerateLane, Generation
from lodger.runtime.kv import KVCache
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Rules, Sampler
from lodger.sched.sequence import Sequence
from lodger.tasks import ChatTask, Delta, GenerateTask, StopRules
from lodger.text.template import ChatTemplate

_COUNTED = 4  # times the context length: prompts up to this are counted exactly before they are refused


class GenerateModel(ServedModel):
    """Serves chat and completion tasks."""

    def __init__(self, serving: Serving, runner: Runner, cache: KVCache, budget: Budget) -> None:
        self._lane = GenerateLane(serving.uid, runner, cache, budget.step_tokens, budget.sequences)
        self._template = ChatTemplate.load(serving.facts.path)
        self._device = runner.device
        self._arrivals: Arrivals | None = None
        super().__init__(serving, self._lane, cache)

    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        """See `generate_to`."""
        arrived: asyncio.Queue[Delta | None] = asyncio.Queue()
        making = asyncio.ensure_future(self.generate_to(task, arrived.put_nowait))
        making.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (delta := await arrived.get()) is not None:
                yield delta
            await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def generate_to(self, task: GenerateTask, put: Callable[[Delta], None]) -> None:
        """
        Raises:
            ContextExceeded, EmptyInput, Unsupported, InvalidRequest: before anything is made.
            OutOfMemory, Cancelled, InternalError: at any time.
        """
        with self._counted():
            prompt = await self._in_pool(lambda: self._prompt(task))
            self._check_prompt(prompt)
            answer = Answer(len(prompt), put, self._cancel)
            try:
                for index in range(task.n):
                    self._start(task, prompt, index, answer)
                await answer.done
            finally:
                answer.close()

    def _arriving(self) -> Arrivals:
        """Of the event loop that asks."""
        loop = asyncio.get_running_loop()
        if self._arrivals is None or self._arrivals.loop is not loop:
            self._arrivals = Arrivals(loop)
        return self._arrivals

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

    def _start(self, task: GenerateTask, prompt: list[int], index: int, answer: Answer) -> None:
        """Hand one choice to the device. Without a seed every choice gets its own randomness."""
        facts, rules = self._serving.facts, task.stopping
        seed = None if task.sampling.seed is None else task.sampling.seed + index
        generation = Generation(
            sequence=Sequence(next(self._ids), prompt, max_new_tokens=self._most_tokens(rules, len(prompt))),
            sampler=Sampler(Rules.of(task.sampling, facts.generation), seed, prompt, facts.vocab_size, self._device),
            stops=frozenset() if rules.ignore_eos else frozenset(facts.eos_token_ids),
            deliver=partial(self._arriving().deliver, answer, index),
        )
        answer.choices.append(Choice(generation.sequence.id, generation.stops, self._serving.tokenizer, rules.stop))
        self._serving.loop.post(lambda: self._lane.add(generation))

    def _most_tokens(self, rules: StopRules, prompt: int) -> int:
        room = self.info.context_length - prompt
        if rules.max_tokens is None:
            return room
        if rules.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {rules.max_tokens}, and at least 1 is needed.", param="max_tokens")
        return min(rules.max_tokens, room)

    def _cancel(self, sequence_id: int) -> None:
        self._serving.loop.post(partial(self._lane.cancel, sequence_id))
