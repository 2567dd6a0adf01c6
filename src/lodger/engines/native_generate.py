"""A chat model of the native engine: messages to a prompt, tokens to text as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NamedTuple

from lodger.budget import Budget
from lodger.engines.native_answer import Answer, Arrivals, Choice
from lodger.engines.native_model import ServedModel, Serving, check_ids
from lodger.errors import ContextExceeded, EmptyInput, InvalidRequest, Unsupported
from lodger.runtime.generating import GenerateLane, Generation
from lodger.runtime.kv import KVCache
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Rules, Sampler
from lodger.sched.sequence import Sequence
from lodger.tasks import ChatTask, CompletionTask, Constraint, Delta, GenerateTask, StopRules
from lodger.text.answer_constraint import answer_constraint
from lodger.text.grammar import Grammars, Guide, too_slow
from lodger.text.output import output_parser
from lodger.text.template import ChatTemplate

MOST_LOGPROBS = 20  # alternatives of a token
_LOOK_SECONDS = 1.0  # between two looks at whether a grammar is stuck
_COUNTED = 4  # times the context length: prompts up to this are counted exactly before they are refused


class _Prompt(NamedTuple):
    """What a task comes to."""

    ids: list[int]  # of a prompt far beyond the context some number beyond it
    text: str | None  # None: it was given as ids
    template: str = ""  # what a chat's was written by


class GenerateModel(ServedModel):
    """Serves chat and completion tasks."""

    def __init__(self, serving: Serving, runner: Runner, cache: KVCache, budget: Budget) -> None:
        self._lane = GenerateLane(serving.uid, runner, cache, budget.step_tokens, budget.sequences)
        self._template = ChatTemplate.load(serving.facts.path)
        self._device = runner.device
        self._arrivals: Arrivals | None = None
        facts = serving.facts
        self._grammars = Grammars(serving.tokenizer, facts.vocab_size, facts.eos_token_ids, serving.grammars)
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
            ContextExceeded, EmptyInput, Unsupported, Overloaded: before anything is made.
            InvalidRequest: before that too, or because a grammar turns out to be too much.
            OutOfMemory, Cancelled, InternalError: at any time.
        """
        with self._counted():
            self._check_task(task)
            prompt = await self._in_pool(lambda: self._prompt(task))
            self._check_prompt(prompt.ids)
            guides = await self._guides(task, prompt)
            answer = Answer(len(prompt.ids), put, self._cancel)
            try:
                self._echo(task, prompt, put)
                for index in range(task.n):
                    self._start(task, prompt, index, answer, guides[index] if guides else None)
                await _end(answer, guides)
            finally:
                answer.close()

    async def _guides(self, task: GenerateTask, prompt: _Prompt) -> list[Guide]:
        """One for each choice, where anything is asked of their form."""
        constraint: Constraint | None = task.constraint
        if isinstance(task, ChatTask):
            constraint = answer_constraint(prompt.template, prompt.text or "", task)
        return await self._grammars.guides(constraint, task.n) if constraint is not None else []

    def _echo(self, task: GenerateTask, prompt: _Prompt, put: Callable[[Delta], None]) -> None:
        if isinstance(task, CompletionTask) and task.echo:
            text = self._serving.tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text
            for index in range(task.n):
                put(Delta(index, text))

    def _arriving(self) -> Arrivals:
        """Of the event loop that asks."""
        loop = asyncio.get_running_loop()
        if self._arrivals is None or self._arrivals.loop is not loop:
            self._arrivals = Arrivals(loop)
        return self._arrivals

    def _prompt(self, task: GenerateTask) -> _Prompt:
        tokenizer, most = self._serving.tokenizer, _COUNTED * self.info.context_length
        if isinstance(task, ChatTask):
            if self._template is None:
                raise Unsupported(f"{self._serving.uid} has no chat template.", hint="Use /v1/completions.")
            text = self._template.render(task.messages, tools=task.tools, **task.template_args)
            ids = tokenizer.encode(text, special=False, limit=most)
            return _Prompt(ids, text, self._template.source(task.tools))
        if isinstance(task.prompt, str):
            return _Prompt(tokenizer.encode(task.prompt, special=True, limit=most), task.prompt)
        return _Prompt(check_ids(task.prompt, self._serving.facts, param="prompt"), None)

    def _check_task(self, task: GenerateTask) -> None:
        facts = self._serving.facts
        check_ids(tuple(task.sampling.logit_bias), facts, param="logit_bias")
        check_ids(task.stopping.stop_token_ids, facts, param="stop_token_ids")
        if task.logprobs is None:
            return
        if not 0 <= task.logprobs <= MOST_LOGPROBS:
            said = f"{task.logprobs} alternatives of each token are asked for; 0 to {MOST_LOGPROBS} are told."
            raise InvalidRequest(said, param="logprobs")
        if isinstance(task, CompletionTask) and task.echo:
            raise Unsupported("echo and logprobs are not served together: a prompt has none.", param="logprobs")

    def _check_prompt(self, prompt: list[int]) -> None:
        limit = self.info.context_length
        if not prompt:
            raise EmptyInput("the prompt is empty: there is nothing to answer.", param="prompt")
        if len(prompt) >= limit:
            # Agents look for "prompt is too long" or "maximum context length", and then shorten what they send.
            # Digits in groups: RAGFlow takes "429" anywhere in an error for a rate limit, and repeats it for minutes.
            count = f"{len(prompt):,}" if len(prompt) <= _COUNTED * limit else f"more than {_COUNTED * limit:,}"
            raise ContextExceeded(
                f"the prompt is too long: {count} tokens, and the maximum context length of {self._serving.uid} is "
                f"{limit:,}, prompt and answer together.",
                hint="Shorten the prompt.",
                param="messages",
            )

    def _start(self, task: GenerateTask, prompt: _Prompt, index: int, answer: Answer, guide: Guide | None) -> None:
        """Hand one choice to the device."""
        facts, rules, post = self._serving.facts, task.stopping, self._serving.loop.post
        sequence = Sequence(next(self._ids), prompt.ids, max_new_tokens=self._most_tokens(rules, len(prompt.ids)))
        if guide is not None:
            guide.told = partial(post, partial(self._lane.resume, sequence.id))
        generation = Generation(
            sequence=sequence,
            sampler=self._sampler(task, prompt, index, guide),
            stops=frozenset(rules.stop_token_ids) | frozenset(() if rules.ignore_eos else facts.eos_token_ids),
            deliver=partial(self._arriving().deliver, answer, index),
            guide=guide,
        )
        parser = None
        if isinstance(task, ChatTask):
            parser = output_parser(prompt.template, prompt.text or "", task)
        asks = task.logprobs is not None
        tokenizer, stops = self._serving.tokenizer, generation.stops
        answer.choices.append(Choice(sequence.id, stops, tokenizer, rules.stop, parser, logprobs=asks))
        if index == 0:
            answer.cached = lambda: sequence.cached_tokens
        post(lambda: self._lane.add(generation))

    def _sampler(self, task: GenerateTask, prompt: _Prompt, index: int, guide: Guide | None) -> Sampler:
        """Without a seed every choice gets its own randomness."""
        asked, facts = task.sampling, self._serving.facts
        return Sampler(
            Rules.of(asked, facts.generation),
            None if asked.seed is None else asked.seed + index,
            prompt.ids,
            facts.vocab_size,
            self._device,
            bias=asked.logit_bias,
            guide=guide,
            logprobs=task.logprobs,
        )

    def _most_tokens(self, rules: StopRules, prompt: int) -> int:
        room = self.info.context_length - prompt
        if rules.max_tokens is None:
            return room
        if rules.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {rules.max_tokens}, and at least 1 is needed.", param="max_tokens")
        return min(rules.max_tokens, room)

    def _cancel(self, sequence_id: int) -> None:
        self._serving.loop.post(partial(self._lane.cancel, sequence_id))


async def _end(answer: Answer, guides: list[Guide]) -> None:
    """Until all of it is there.

    Raises:
        InvalidRequest: a guide takes too long for a token.
    """
    while guides and not (await asyncio.wait([answer.done], timeout=_LOOK_SECONDS))[0]:
        if any(guide.stuck for guide in guides):
            raise too_slow()
    await answer.done
