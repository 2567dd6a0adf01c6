"""What one model asks for: from its smallest useful grant to the most it can use.

Grants of every model grow together along one scale, the level: the tokens that a chat model's KV cache holds and the
longest text that an encoder takes. A single number for all models is what makes a plan fair and free of order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from lodger.budget import Budget, workspaces_beside
from lodger.device.view import DeviceView
from lodger.errors import Unsupported
from lodger.plan import footprint
from lodger.plan.values import Candidate
from lodger.units import gib

BLOCK = 16  # tokens in one block of the KV cache
GRAIN = 256  # levels are multiples of this many tokens
MIN_CHAT_CONTEXT = 2048  # served at least, unless the model or the user wants less: a question with a few passages
MIN_ENCODER_CONTEXT = 512
ENCODER_CONTEXT = 8192  # served when nobody asks for more: a longer text makes every step's activations larger
CALLERS, CALLER_TOKENS = 16, 4096  # a chat model's KV cache is wanted for so many sequences of so many tokens
_INT8_CAPABILITY = (8, 0)  # of a GPU that the kernels were measured on or compiled for
LONG_CHAT, SHORT_CHAT, MIN_SEQUENCES = 8192, 128, 16  # tokens of a chat; chats of one step on the tightest budget
MIN_STEP, STEP = 512, 2048  # tokens of one step: on a tight budget, and else
BESIDE = 32_768  # level from which a chat's KV cache leaves memory for texts that are computed beside it
CHAT_STEP = 8192  # of prompts on a GPU, where the KV cache is large


class Demand(NamedTuple):
    """One candidate on one device, ready to be given a level."""

    candidate: Candidate
    device: DeviceView
    dtype: str
    shares: str | None  # uid of the model whose weights this one uses too

    @property
    def uid(self) -> str:
        return self.candidate.spec.uid

    @property
    def generates(self) -> bool:
        return self.candidate.facts.generates

    @property
    def int8(self) -> bool:
        """Its layers get weights of one byte; asking an encoder for them has no effect."""
        return self.candidate.spec.quantization is not None and self.candidate.facts.causal

    @property
    def quantization(self) -> str | None:
        """Of its layers' weights on the device."""
        stays = footprint.stays_int4(self.candidate.facts, self.dtype, self.device)
        return "int8" if self.int8 else "int4" if stays else None

    @property
    def floor(self) -> int:
        """Fewest tokens of context to serve."""
        smallest = MIN_CHAT_CONTEXT if self.generates else MIN_ENCODER_CONTEXT
        return self.candidate.spec.context_length or min(self.candidate.facts.context_length, smallest)

    @property
    def ceiling(self) -> int:
        """The level at which this model has all it can use. A chat model's unasked context ends there too, so that it
        costs nothing beyond the KV cache that is wanted for CALLERS anyway. An encoder of short texts goes on to a full
        step, which packs many of them."""
        longest = self.candidate.facts.context_length
        wanted = CALLERS * min(longest, CALLER_TOKENS) if self.generates else max(STEP, min(longest, ENCODER_CONTEXT))
        return max(self.floor, wanted)

    def context(self, level: int) -> int:
        """Tokens of one sequence served at `level`."""
        longest = self.candidate.spec.context_length or self.candidate.facts.context_length
        return min(longest, max(self.floor, min(level, self.ceiling)))

    def kv_tokens(self, level: int) -> int:
        if self.candidate.held is not None:
            return self.candidate.held.kv_tokens
        if not self.generates:
            return 0
        return -(-max(self.floor, min(level, self.ceiling)) // BLOCK) * BLOCK

    def sequences(self, level: int) -> int:
        """Most chats in one step. On a GPU each costs a row of logits: a tight budget is for few long chats, and what
        the KV cache has beyond one of them is for short ones too."""
        most = footprint.LOGITS_ROWS[self.device.kind]
        if self.device.kind == "cpu":
            return most
        return min(most, MIN_SEQUENCES + max(self.kv_tokens(level) - LONG_CHAT, 0) // SHORT_CHAT)

    def step_tokens(self, level: int) -> int:
        """Tokens of one step. A text is never split over two steps. Of a chat's prompt 8,192 keep a GPU busier than
        fewer do; on a tight budget their activations are better spent on the KV cache."""
        if not self.generates:
            return max(min(STEP, max(MIN_STEP, level)), self.context(level))
        if self.device.kind == "cuda":
            return min(CHAT_STEP, max(MIN_STEP, level // 8))
        return min(STEP, max(MIN_STEP, level))

    def budget(self, level: int) -> Budget:
        """The grant at `level`; no part of it shrinks when the level rises, and none of a loaded model's changes."""
        if self.candidate.held is not None:
            return self.candidate.held.budget
        facts, context = self.candidate.facts, self.context(level)
        step, kv_tokens = self.step_tokens(level), self.kv_tokens(level)
        return Budget(
            weights=footprint.weights(facts, self.dtype, self.device, int8=self.int8),
            kv_cache=kv_tokens * footprint.kv_bytes_per_token(facts, self.dtype, self.device),
            activations=footprint.activations(
                facts, self.dtype, self.device, step_tokens=step, context=context, kv_tokens=kv_tokens
            )
            + (footprint.QUANTISED_WORKSPACE if self.quantization else 0),
            captured=footprint.captured(
                facts, self.dtype, self.device, sequences=self.sequences(level), kv_tokens=kv_tokens
            ),
            unfinished=footprint.unfinished(
                facts, self.dtype, self.device, step_tokens=step, sequences=self.sequences(level)
            ),
            gaps=footprint.gaps(facts, self.dtype, self.device, step_tokens=step),
            graphs=footprint.graphs(facts, self.dtype, self.device, step_tokens=step, sequences=self.sequences(level)),
            step_tokens=step,
            context_length=context,
            block_size=BLOCK,
            sequences=self.sequences(level),
        )

    def cost(self, level: int) -> int:
        """Bytes that `budget` takes; shared weights are counted where they are shared from."""
        budget = self.budget(level)
        return budget.total - (budget.weights if self.shares else 0)

    @property
    def smallest(self) -> Budget:
        return self.budget(0)

    @property
    def too_small(self) -> bool:
        """The user's own limit for this model is under its smallest grant."""
        limit = self.candidate.spec.memory
        return limit is not None and limit < self.cost(0) and self.candidate.held is None


def demands(device: DeviceView, candidates: Iterable[Candidate]) -> tuple[Demand, ...]:
    """One Demand for each candidate, sorted by uid.

    Models of one folder in one dtype share their weights, which count for one of them: for a model that has them loaded
    already, else for an embedding model, else for the first by uid.

    Raises:
        Unsupported: a context longer than the model knows, or weights of one byte where they are not served.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.spec.uid)
    for candidate in ordered:
        _check_context(candidate)
        _check_quantization(device, candidate)
    owners: dict[tuple[object, ...], str] = {}
    for candidate in sorted(ordered, key=_ownership):
        owners.setdefault(weights_key(device, candidate), candidate.spec.uid)
    wants = []
    for candidate in ordered:
        owner = owners[weights_key(device, candidate)]
        dtype = footprint.choose_dtype(device, candidate.facts, candidate.spec.dtype)
        wants.append(Demand(candidate, device, dtype, None if owner == candidate.spec.uid else owner))
    return tuple(wants)


def _ownership(candidate: Candidate) -> tuple[bool, bool]:
    held = candidate.held is not None and candidate.held.shares is None
    return not held, candidate.facts.kind != "embedding"


def weights_key(device: DeviceView, candidate: Candidate) -> tuple[object, ...]:
    """Equal for models that an engine gives the same weights. On a CPU it measures the dtype that nobody asked for."""
    facts, asked = candidate.facts, candidate.spec.dtype
    dtype = asked if device.kind == "cpu" else footprint.choose_dtype(device, facts, asked)
    quantization = candidate.spec.quantization
    return facts.path, facts.architecture, dtype, quantization, facts.output_rows, facts.token_heads


def needed(device: DeviceView, wants: tuple[Demand, ...], levels: Mapping[str, int] = MappingProxyType({})) -> int:
    """Bytes of the worker and all its models, each at its level (0, the smallest grant, where none is given)."""
    budgets = grants(wants, levels)
    kept = sum(own.kept - (own.weights if want.shares else 0) for own, want in zip(budgets, wants, strict=True))
    apart = 0 if device.kind == "cuda" else sum(own.activations for own in budgets)
    return process(device, wants) + steps(device, budgets) + kept + apart


def grants(wants: tuple[Demand, ...], levels: Mapping[str, int]) -> list[Budget]:
    """What each gets. Captured steps of all work in one place, as large as the largest needs it. It cannot grow: where
    models that are loaded have too small a one, the new ones get another beside it."""
    own = [want.budget(levels.get(want.uid, 0)) for want in wants]
    most = max((budget.graphs for budget in own), default=0)
    granted = [
        budget if want.candidate.held or not most else msgspec.structs.replace(budget, graphs=most)
        for want, budget in zip(wants, own, strict=True)
    ]
    chats = any(want.generates and levels.get(want.uid, 0) >= BESIDE for want in wants)
    return _beside(wants, granted) if chats else granted


def _beside(wants: tuple[Demand, ...], budgets: list[Budget]) -> list[Budget]:
    """With what texts take that are computed beside chats; whose memory the user has limited gets nothing of it. Like
    the place of captured steps, theirs is as large as the largest needs it, and cannot grow."""
    found = [footprint.beside(want.candidate.facts, want.dtype, want.device) for want in wants]
    gets = [want.candidate.held is None and want.candidate.spec.memory is None for want in wants]
    most = max((work for (work, *_), new in zip(found, gets, strict=True) if new), default=0)
    return [
        msgspec.structs.replace(budget, beside=most, captured=budget.captured + states, made_beside=made)
        if new and work
        else budget
        for budget, (work, states, made), new in zip(budgets, found, gets, strict=True)
    ]


def steps(device: DeviceView, budgets: Iterable[Budget]) -> int:
    """Bytes of the activations that all models share. One step runs at a time, so on a GPU, where what one leaves is
    there for the next, these are the largest one's; a CPU's heap has pieces of many sizes, and each model counts its
    own. Of captured steps each place counts, and models with as much for them have the same one."""
    if device.kind == "cpu":
        return 0
    budgets = list(budgets)
    unfinished = sum(own.unfinished for own in budgets)
    largest = max((own.activations + unfinished - own.resumed for own in budgets), default=0)
    largest += max(own.gaps for own in budgets) if len(budgets) > 1 else 0
    beside = sum({own.beside for own in budgets}) + sum(own.made_beside for own in budgets)
    products = workspaces_beside(device.compute_capability) if beside else 0
    return largest + sum({own.graphs for own in budgets}) + beside + products


def available(device: DeviceView, reserve: int) -> int:
    """Bytes that our worker may hold: free now, and what it holds already, less the reserve."""
    return device.free + device.ours - reserve


def fits(device: DeviceView, wants: tuple[Demand, ...], reserve: int) -> bool:
    """Whether every model can have its smallest grant."""
    if any(want.too_small for want in wants):
        return False
    return not wants or needed(device, wants) <= available(device, reserve)


def process(device: DeviceView, wants: tuple[Demand, ...]) -> int:
    """Bytes of the worker process; none is started for no model."""
    if not wants:
        return 0
    dense = any(want.generates and want.quantization is None for want in wants)
    return footprint.process(device, tuple(want.candidate.facts.vocab_size for want in wants), dense=dense)


def highest(holds: Callable[[int], bool], most: int) -> int:
    """The highest level up to `most` for which `holds`, in steps of GRAIN; 0 when it holds for none.

    `holds` is true up to some level and false above it.
    """
    if holds(most):
        return most
    return GRAIN * max(0, bisect_left(range(0, most, GRAIN), True, key=lambda level: not holds(level)) - 1)


def with_spec(candidate: Candidate, **changes: object) -> Candidate:
    """The same candidate asked for differently; what it holds is up for planning again."""
    return Candidate(msgspec.structs.replace(candidate.spec, **changes), candidate.facts)


def _check_context(candidate: Candidate) -> None:
    asked, longest = candidate.spec.context_length, candidate.facts.context_length
    if asked is not None and not 1 <= asked <= longest:
        raise Unsupported(
            f"{candidate.spec.uid} cannot serve a context of {asked:,} tokens: the model knows 1 to {longest:,}.",
            hint=f"Set its context_length to {longest} or less.",
            param="context_length",
        )


def _check_quantization(device: DeviceView, candidate: Candidate) -> None:
    facts, asked = candidate.facts, candidate.spec.quantization
    if asked is None or not facts.causal:
        return
    if facts.int4 is not None:
        raise Unsupported(
            f"{candidate.spec.uid} holds int4 weights, which do not become {asked}.",
            hint="Leave its quantization out.",
            param="quantization",
        )
    dtype = footprint.choose_dtype(device, facts, candidate.spec.dtype)
    capability = device.compute_capability or _INT8_CAPABILITY
    if device.kind == "cpu":
        where = "on a CPU"
    elif capability < _INT8_CAPABILITY:
        where = "on a GPU of compute capability {}.{}".format(*capability)
    elif dtype not in footprint.HALF:
        where = f"in {dtype}"
    else:
        return
    saved = gib(footprint.int8_saves(facts, "bfloat16"))
    raise Unsupported(
        f"{asked} weights are not served {where}, as {candidate.spec.uid} asks for.",
        hint=f"Leave its quantization out. On a GPU from compute capability 8.0 it saves {saved} of bfloat16's bytes.",
        param="quantization",
    )
