"""Embedding models of the native engine: dense vectors, and bge-m3's weights and vectors of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.nn.functional import normalize

from lodger.engines.native_encode import EncodingModel
from lodger.engines.native_model import Serving, check_ids
from lodger.errors import EmptyInput, InvalidRequest, Unsupported
from lodger.runtime.heads import ColbertHead
from lodger.runtime.partition import Partition
from lodger.runtime.runner import Runner
from lodger.tasks import EmbedOutput, EmbedResult, EmbedTask, SparseVector, Usage
from lodger.text.frame import Encoded
from lodger.units import MIB, gib

_MOST_BYTES = 63 * MIB  # of one answer's numbers: a frame between worker and gateway has 64 MiB
_UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")  # get no sparse weight, as in FlagEmbedding


class EmbeddingModel(EncodingModel):
    """Serves embedding tasks."""

    lane_name = "embed"

    def __init__(self, serving: Serving, runner: Runner, step_tokens: int, beside: Partition | None = None) -> None:
        super().__init__(serving, runner, step_tokens, beside)
        self._unweighted = sorted(serving.tokenizer.special_ids(_UNWEIGHTED))

    async def embed(self, task: EmbedTask) -> EmbedResult:
        """
        Raises:
            EmptyInput: no inputs, or one without tokens. An empty text is a text.
            InvalidRequest: more dimensions than the model has, ids outside of its vocabulary, an unknown prompt, or an
                answer too large to be passed on.
            Unsupported: an output that the model does not make.
            OutOfMemory, Cancelled, InternalError.
        """
        if not task.inputs:
            raise EmptyInput("input is empty: there is nothing to embed.", param="input")
        size = self._dimensions(task.dimensions)
        outputs = self._outputs(task.outputs)
        before = self._prompt(task.prompt_name)
        with self._counted():
            texts = await self._in_pool(lambda: self._tokenise(task.inputs, before))
            self._check_size(texts, outputs, size)
            found = await self._encode(texts, tuple(self._heads[output] for output in outputs))
            answer = partial(self._answer, texts, dict(zip(outputs, zip(*found, strict=True), strict=True)), size)
            return answer() if outputs == ["dense"] else await self._in_pool(answer)

    def _dimensions(self, asked: int | None) -> int:
        most = self._serving.facts.dimensions or self._serving.facts.hidden_size
        if asked is not None and not 1 <= asked <= most:
            raise InvalidRequest(
                f"dimensions is {asked}, and {self._serving.uid} makes 1 to {most}.", param="dimensions"
            )
        return asked or most

    def _outputs(self, asked: Sequence[EmbedOutput]) -> list[EmbedOutput]:
        missing = [output for output in asked if output not in self._heads]
        if missing or not asked:
            what, made = ", ".join(missing) or "empty", ", ".join(self._heads)
            raise Unsupported(f"{self._serving.uid} makes no {what} output; it makes {made}.", param="return")
        return list(dict.fromkeys(asked))

    def _prompt(self, name: str | None) -> str:
        """What stands before each text."""
        prompts = self._serving.facts.prompts
        name = self._serving.facts.default_prompt if name is None else name
        if name and name not in prompts:
            raise InvalidRequest(
                f"{self._serving.uid} has no prompt {name[:100]!r}.",
                hint=f"It has: {', '.join(prompts) or 'none'}.",
                param="prompt_name",
            )
        return prompts[name] if name else ""

    def _tokenise(self, inputs: tuple[str | tuple[int, ...], ...], before: str) -> list[Encoded]:
        limit = self.info.context_length
        texts = [before + text for text in inputs if isinstance(text, str)]
        encoded = iter(self._serving.tokenizer.encode_batch(texts, max_length=limit) if texts else ())
        return [next(encoded) if isinstance(given, str) else self._given(given, limit) for given in inputs]

    def _given(self, ids: tuple[int, ...], limit: int) -> Encoded:
        """Ids that the caller made, special tokens and prompt included."""
        if not ids:
            raise EmptyInput("input has a list without tokens: there is nothing to embed.", param="input")
        kept = check_ids(ids, self._serving.facts, param="input")[:limit]
        return Encoded(tuple(kept), None, len(ids) > limit)

    def _check_size(self, texts: list[Encoded], outputs: list[EmbedOutput], size: int) -> None:
        """
        Raises:
            InvalidRequest: the answer would not fit into one message. Told before anything is computed.
        """
        tokens = sum(len(text.tokens) for text in texts)
        per_token = 4 * self._colbert_dimensions if "colbert" in outputs else 0
        per_token += 8 if "sparse" in outputs else 0  # an id and a weight
        per_text = 4 * size if "dense" in outputs else 0
        needed = tokens * per_token + len(texts) * per_text
        if needed > _MOST_BYTES:
            raise InvalidRequest(
                f"the {', '.join(outputs)} vectors of {len(texts):,} inputs with {tokens:,} tokens are {gib(needed)}, "
                f"and one answer has at most {gib(_MOST_BYTES)}.",
                hint="Send fewer or shorter inputs at a time.",
                param="input",
            )

    @property
    def _colbert_dimensions(self) -> int:
        head = self._heads.get("colbert")
        return head.dimensions if isinstance(head, ColbertHead) else 0

    def _answer(self, texts: list[Encoded], made: dict[EmbedOutput, Sequence[torch.Tensor]], size: int) -> EmbedResult:
        """`made`: of each output the rows of every text."""
        weights, vectors = made.get("sparse", ()), made.get("colbert", ())
        return EmbedResult(
            vectors=self._dense(made["dense"], size) if "dense" in made else b"",
            count=len(texts),
            dimensions=size,
            sparse=tuple(self._sparse(text, own) for text, own in zip(texts, weights, strict=False)),
            colbert=tuple(_bytes(own) for own in vectors),
            colbert_dimensions=self._colbert_dimensions if vectors else 0,
            usage=Usage(sum(len(text.tokens) for text in texts)),
            truncated=sum(text.truncated for text in texts),
        )

    def _dense(self, rows: Sequence[torch.Tensor], size: int) -> bytes:
        """The first `size` dimensions, as Matryoshka embeddings are cut (arXiv 2205.13147)."""
        vectors = torch.cat(tuple(rows))
        if size < vectors.shape[1]:
            vectors = vectors[:, :size]
            vectors = normalize(vectors, dim=-1) if self._serving.facts.normalize else vectors.contiguous()
        return _bytes(vectors)

    def _sparse(self, text: Encoded, weights: torch.Tensor) -> SparseVector:
        """Of a token that stands in several places the largest weight."""
        ids, place = np.unique(np.array(text.tokens, "<i4"), return_inverse=True)
        best = np.zeros(len(ids), "<f4")
        np.maximum.at(best, place, weights[:, 0].numpy())
        kept = (best > 0) & ~np.isin(ids, self._unweighted)
        return SparseVector(ids=ids[kept].tobytes(), weights=best[kept].tobytes())


def _bytes(numbers: torch.Tensor) -> bytes:
    """float32, little-endian."""
    return numbers.numpy().astype("<f4", copy=False).tobytes()
