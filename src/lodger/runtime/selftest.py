"""At load: our packed forward computes what transformers computes for each text alone.

The reference is the model as it is stored, run in float32 by transformers with its own attention, so one comparison
finds a family that ignores our attention, a fast path that differs, a damaged conversion and a dtype that is too
coarse for this model. A layer's parameters exist in float32 only while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lodger.catalogue.facts import ModelFacts
from lodger.errors import DamagedWeights, ModelProblem, UnknownArchitecture
from lodger.runtime.attention import interface
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import pack_items, pack_rows
from lodger.runtime.runner import Runner
from lodger.sched.step import Item, Row

_LENGTHS = (7, 19)  # tokens of the two texts; the longer one crosses a block of the cache
_BLOCK = 8


class SelfTest:
    """Two texts and the hidden states that transformers gives each of them alone.

    Args:
        model: the base model or classifier with its stored tensors assigned.
    """

    def __init__(self, facts: ModelFacts, model: PreTrainedModel) -> None:
        self._facts = facts
        generator = torch.Generator().manual_seed(0)
        self._texts = [
            torch.randint(facts.vocab_size, (min(length, facts.context_length),), generator=generator)
            for length in _LENGTHS
        ]
        base: Any = model.base_model
        base.set_attn_implementation("sdpa")
        with _streamed_float32(base):
            self._expected = torch.cat(self._padded(base))
        base.set_attn_implementation(interface.NAME)

    def error(self, runner: Runner) -> float:
        """Largest error of a token's hidden state, with both texts packed, relative to the longer of what was found and
        what was expected; infinity where either holds something that is no number."""
        found, expected = self._found(runner), self._expected
        longer = torch.maximum(found.norm(dim=-1), expected.norm(dim=-1))
        off = (found - expected).norm(dim=-1)
        return float(torch.where(off == 0, off, off / longer).max().nan_to_num(torch.inf))

    def refusal(self, runner: Runner) -> ModelProblem:
        """With what was measured."""
        name, how, tokens = f"{self._facts.name} failed its self-test", runner.precision, len(self._expected)
        if lost := _endless(self._expected):
            return DamagedWeights(
                f"{name}: in float32 the hidden states of {lost} of {tokens} tokens are not finite, each text alone.",
                hint="Its weights are damaged, or not those of this architecture: compare them with their source.",
            )
        if lost := _endless(self._found(runner)):
            return UnknownArchitecture(
                f"{name} in {how.name}: the hidden states of {lost} of {tokens} tokens are not finite, and in float32 "
                "they are.",
                hint="Try dtype bfloat16 or float32, whose ranges are wider than float16's.",
            )
        return UnknownArchitecture(
            f"{name} in {how.name}: two texts in one forward differ from "
            f"each alone by {self.error(runner):.1e} (at most {how.tolerance:.1e}).",
            hint="Try dtype float32; if it fails too, this model cannot be served.",
        )

    def _found(self, runner: Runner) -> torch.Tensor:
        """[tokens of both, hidden_size] float32."""
        found = self._generating(runner) if self._facts.generates else self._encoding(runner)
        return torch.cat([part.cpu().float() for part in found])

    def _padded(self, base: Any) -> list[torch.Tensor]:
        """One row for each text, so that every weight is converted once."""
        ids = pad_sequence(self._texts, batch_first=True)
        mask = pad_sequence([torch.ones_like(text) for text in self._texts], batch_first=True)
        offset = self._facts.position_offset
        positions = torch.arange(offset, offset + ids.shape[1]).expand_as(ids)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if not self._facts.causal:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        hidden: torch.Tensor = base(**inputs, return_dict=False)[0]
        return [own[: len(text)] for own, text in zip(hidden, self._texts, strict=True)]

    def _encoding(self, runner: Runner) -> list[torch.Tensor]:
        items = [Item(0, index, tuple(text.tolist())) for index, text in enumerate(self._texts)]
        batch = pack_items(items, self._facts.position_offset, runner.device)
        return list(runner.hidden(batch).split_with_sizes([len(text) for text in self._texts]))

    def _generating(self, runner: Runner) -> list[torch.Tensor]:
        """In two steps over a KV cache: fresh chunks; then one token of the one beside the rest of the other."""
        wide = -(-max(map(len, self._texts)) // _BLOCK)
        cache = KVCache(self._facts, wide * len(self._texts), _BLOCK, runner.precision.compute, runner.device)
        cuts = [len(self._texts[0]) - 1, len(self._texts[1]) // 2]
        parts: list[list[torch.Tensor]] = [[] for _ in self._texts]
        for step in (0, 1):
            rows = []
            for n, text in enumerate(self._texts):
                start, end = (0, cuts[n]) if step == 0 else (cuts[n], len(text))
                blocks = tuple(range(n * wide, (n + 1) * wide))
                rows.append(Row(n, tuple(text[start:end].tolist()), start, blocks, step == 1))
            hidden = runner.hidden(pack_rows(rows, _BLOCK, runner.device), cache)
            for part, own in zip(parts, hidden.split_with_sizes([len(row.tokens) for row in rows]), strict=True):
                part.append(own)
        return [torch.cat(part) for part in parts]


def _endless(hidden: torch.Tensor) -> int:
    """How many tokens have a hidden state that is not of numbers alone."""
    return int((~hidden.isfinite().all(dim=-1)).sum())


@contextmanager
def _streamed_float32(model: torch.nn.Module) -> Iterator[None]:
    """Modules compute in float32 whatever their parameters are stored in, and convert them only for that moment.

    Of an embedding the rows are converted that were looked up, not the table. All are converted to the same place: the
    pages of a new one for each would take longer than the products.
    """
    stored: dict[torch.nn.Module, dict[str, Any]] = {}
    room = torch.empty(max(map(_own_size, model.modules())))
    begun: list[int] = []  # where modules that run inside of each other have their parameters

    def widen(module: torch.nn.Module, _: Any) -> None:
        stored[module] = dict(module._parameters)
        at = begun[-1] if begun else 0
        for name, parameter in stored[module].items():
            if parameter is not None:
                end = at + parameter.numel()
                wide = room[at:end] if end <= len(room) else torch.empty(parameter.numel())
                wide = wide.view(parameter.shape).copy_(parameter)
                module._parameters[name] = torch.nn.Parameter(wide, requires_grad=False)
                at = end
        begun.append(at)

    def restore(module: torch.nn.Module, _: Any, __: Any) -> None:
        module._parameters.update(stored.pop(module))
        begun.pop()

    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            handles.append(module.register_forward_hook(lambda _, __, rows: rows.float()))
        elif module._parameters:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_size(module: torch.nn.Module) -> int:
    """Numbers of the parameters that a module has itself, a table not counted."""
    if isinstance(module, torch.nn.Embedding):
        return 0
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))
