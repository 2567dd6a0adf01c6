"""Rerank models of the native engine, one class for each way to compare a document with a query."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from lodger.engines.native_encode import EncodingModel
from lodger.errors import ContextExceeded
from lodger.runtime.heads import ColbertHead, LateInteraction
from lodger.runtime.runner import Heads
from lodger.tasks import RerankResult, RerankTask, Usage
from lodger.text.frame import Encoded


class Reranker(EncodingModel):
    """Serves rerank tasks. A kind says what it encodes and how it compares that."""

    lane_name = "rerank"

    async def rerank(self, task: RerankTask) -> RerankResult:
        """
        Raises:
            ContextExceeded, EmptyInput: see the kinds.
            OutOfMemory, Cancelled, InternalError.
        """
        if not task.documents:
            return RerankResult(scores=(), logits=(), usage=Usage())
        with self._counted():
            texts = await self._in_pool(lambda: self._tokenise(task))
            logits = (await self._compare(texts)).double()
        return RerankResult(
            scores=tuple(self._score(logits).tolist()),
            logits=tuple(logits.tolist()),
            usage=Usage(sum(len(text.tokens) for text in texts)),
            truncated=sum(text.truncated for text in texts),
        )

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        raise NotImplementedError

    async def _compare(self, texts: list[Encoded]) -> torch.Tensor:
        """[documents]: what to sort by, from the texts of `_tokenise`."""
        raise NotImplementedError

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        """The same in 0..1."""
        raise NotImplementedError

    async def _rows(self, texts: Sequence[Encoded], heads: Heads) -> torch.Tensor:
        """What the only one of `heads` makes of all texts, one row after the other."""
        return torch.cat([rows for (rows,) in await self._encode(texts, heads)])


class CrossEncoder(Reranker):
    """Query and document in one text, one logit for each pair."""

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        limit = self.info.context_length
        return self._serving.tokenizer.encode_pairs(task.query, task.documents, max_length=limit)

    async def _compare(self, texts: list[Encoded]) -> torch.Tensor:
        return (await self._rows(texts, (self._heads["score"],)))[:, 0]

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class YesNo(CrossEncoder):
    """A chat model that is asked whether the document answers the query: how far its "yes" is before its "no".

    Prompt and cutting are those of Qwen3-Reranker's model card: prefix, body and suffix are tokenised on their own, and
    over-long bodies are cut, which end in the document.
    """

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        """
        Raises:
            ContextExceeded: instruction and query leave no room for a document.
        """
        template = self._serving.facts.rerank_template
        assert template is not None  # else it would not have been loaded
        names = {"instruction": task.instruction or template.instruction, "query": task.query}
        before, _, after = template.body.partition("{document}")
        head = re.sub(r"\{(instruction|query)\}", lambda name: names[name[1]], before)
        suffix = after + template.suffix
        tokenizer, limit = self._serving.tokenizer, self.info.context_length
        (bare,) = tokenizer.encode_between(template.prefix, [head], suffix, max_length=limit)
        if bare.truncated or len(bare.tokens) == limit:
            raise ContextExceeded(
                f"query and instruction leave no room for documents: {self._serving.uid} serves {limit:,} tokens.",
                hint="Shorten the query.",
                param="query",
            )
        texts = [head + document for document in task.documents]
        return tokenizer.encode_between(template.prefix, texts, suffix, max_length=limit)


class BiEncoder(Reranker):
    """An embedding model as a reranker: the cosine of query and document, (1 + cos) / 2 to be in 0..1."""

    def _tokenise(self, task: RerankTask) -> list[Encoded]:
        """The query and the documents, each behind its prompt where the model has one."""
        prompts = self._serving.facts.prompts
        before = prompts.get("document") or prompts.get("passage") or ""
        texts = [prompts.get("query", "") + task.query, *(before + document for document in task.documents)]
        return self._serving.tokenizer.encode_batch(texts, max_length=self.info.context_length)

    async def _compare(self, texts: list[Encoded]) -> torch.Tensor:
        query, *documents = normalize((await self._rows(texts, (self._heads["dense"],))).double(), dim=-1)
        cosines: torch.Tensor = (torch.stack(documents) @ query).clamp(-1, 1)
        return cosines

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        return (1 + logits) / 2


class MultiVector(BiEncoder):
    """bge-m3's late interaction: the mean over the query's tokens of the cosine to the document's most similar one."""

    async def _compare(self, texts: list[Encoded]) -> torch.Tensor:
        colbert = self._heads["colbert"]
        assert isinstance(colbert, ColbertHead)
        query, *documents = texts
        vectors = await self._rows([query], (colbert,))
        return (await self._rows(documents, (LateInteraction(colbert, vectors),)))[:, 0].clamp(-1, 1)
