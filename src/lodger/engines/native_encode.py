"""Embedding and rerank models of the native engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch.nn.functional import normalize

from lodger.engines.native_model import ServedModel, Serving, check_ids
from lodger.errors import EmptyInput, InvalidRequest, LodgerError
from lodger.runtime.encoding import EncodeLane, Outcome
from lodger.runtime.runner import Runner
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import Job
from lodger.sched.step import Item
from lodger.tasks import EmbedResult, EmbedTask, RerankResult, RerankTask, Usage
from lodger.text.frame import Encoded


class EncodingModel(ServedModel):
    """Whole texts in, one row of numbers for each out."""

    lane_name: LaneName

    def __init__(self, serving: Serving, runner: Runner, step_tokens: int) -> None:
        self._lane = EncodeLane(serving.uid, runner, self.lane_name, step_tokens)
        super().__init__(serving, self._lane)

    async def _encode(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """[texts, ...] float32, in the order of the texts.

        Raises:
            OutOfMemory, Cancelled, InternalError.
        """
        job_id = next(self._ids)
        items = tuple(Item(job_id, at, text.tokens, text.token_types) for at, text in enumerate(texts))
        job = Job(job_id, self.lane_name, items)
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        deliver = _deliver_to(outcome)
        self._serving.loop.post(lambda: self._lane.add(job, deliver))
        try:
            found = await outcome
        finally:  # the client went away
            self._serving.loop.post(lambda: self._lane.cancel(job_id))
        if isinstance(found, LodgerError):
            raise found
        return found


class EmbeddingModel(EncodingModel):
    """Serves embedding tasks."""

    lane_name = "embed"

    async def embed(self, task: EmbedTask) -> EmbedResult:
        """
        Raises:
            EmptyInput: no inputs. An empty text is a text.
            InvalidRequest: more dimensions than the model has, or ids outside of its vocabulary.
            OutOfMemory, Cancelled, InternalError.
        """
        if not task.inputs:
            raise EmptyInput("input is empty: there is nothing to embed.", param="input")
        size = self._dimensions(task.dimensions)
        with self._counted():
            texts = await self._in_pool(lambda: self._tokenise(task.inputs))
            vectors = await self._encode(texts)
        if size < vectors.shape[1]:
            vectors = vectors[:, :size]
            vectors = normalize(vectors, dim=-1) if self._serving.facts.normalize else vectors.contiguous()
        return EmbedResult(
            vectors=vectors.numpy().astype("<f4", copy=False).tobytes(),
            count=len(texts),
            dimensions=size,
            usage=Usage(sum(len(text.tokens) for text in texts)),
            truncated=sum(text.truncated for text in texts),
        )

    def _dimensions(self, asked: int | None) -> int:
        most = self._serving.facts.dimensions or self._serving.facts.hidden_size
        if asked is not None and not 1 <= asked <= most:
            raise InvalidRequest(
                f"dimensions is {asked}, and {self._serving.uid} makes 1 to {most}.", param="dimensions"
            )
        return asked or most

    def _tokenise(self, inputs: tuple[str | tuple[int, ...], ...]) -> list[Encoded]:
        limit = self.info.context_length
        texts = [text for text in inputs if isinstance(text, str)]
        encoded = iter(self._serving.tokenizer.encode_batch(texts, max_length=limit) if texts else ())
        return [next(encoded) if isinstance(given, str) else self._given(given, limit) for given in inputs]

    def _given(self, ids: tuple[int, ...], limit: int) -> Encoded:
        """Ids that the caller made, special tokens included."""
        if not ids:
            raise EmptyInput("input has a list without tokens: there is nothing to embed.", param="input")
        kept = check_ids(ids, self._serving.facts, param="input")[:limit]
        return Encoded(tuple(kept), None, len(ids) > limit)


class Reranker(EncodingModel):
    """Serves rerank tasks. A kind says what it encodes and how it scores that."""

    lane_name = "rerank"

    async def rerank(self, task: RerankTask) -> RerankResult:
        """
        Raises:
            OutOfMemory, Cancelled, InternalError.
        """
        if not task.documents:
            return RerankResult(scores=(), logits=(), usage=Usage())
        with self._counted():
            texts = await self._in_pool(lambda: self._tokenise(task))
            scores, logits = self._score(await self._encode(texts))
        return RerankResult(
            scores=tuple(scores.tolist()),
            logits=tuple(logits.tolist()),
            usage=Usage(sum(len(text.tokens) for text in texts)),
            truncated=sum(text.truncated for text in texts),
        )

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        raise NotImplementedError

    def _score(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores in 0..1 and what to sort by, each [documents] float64, from the rows of `_tokenise`'s texts."""
        raise NotImplementedError


class CrossEncoder(Reranker):
    """Query and document in one text, one logit for each pair."""

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        limit = self.info.context_length
        return self._serving.tokenizer.encode_pairs(task.query, task.documents, max_length=limit)

    def _score(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = rows[:, 0].double()
        return logits.sigmoid(), logits


class BiEncoder(Reranker):
    """An embedding model as a reranker: the cosine of query and document, (1 + cos) / 2 to be in 0..1."""

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        """The query and the documents, each behind its prompt where the model has one."""
        prompts = self._serving.facts.prompts
        before = prompts.get("document") or prompts.get("passage") or ""
        texts = [prompts.get("query", "") + task.query, *(before + document for document in task.documents)]
        return self._serving.tokenizer.encode_batch(texts, max_length=self.info.context_length)

    def _score(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, *documents = normalize(rows.double(), dim=-1)
        cosine = (torch.stack(documents) @ query).clamp(-1, 1)
        return (1 + cosine) / 2, cosine


def _deliver_to(outcome: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    """From the device's thread into the event loop that waits."""
    loop = asyncio.get_running_loop()

    def settle(found: Outcome) -> None:
        if not outcome.done():
            outcome.set_result(found)

    def deliver(found: Outcome) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    return deliver
