"""How the next token is chosen from logits, for a whole step at once.

The order of operations and their meaning are those of transformers' generation: biases and masks, penalties,
temperature, top-k, top-p, min-p. Presence and frequency penalties are OpenAI's: they count generated tokens only.

A random choice takes one number in 0..1 from its sequence's own generator and looks it up in the cumulative
distribution, so a seed gives the same text whatever else is in the batch.

On a GPU that runs our kernels `kernels.sampling` does the same for all rows in three launches. What is here is the
reference, and serves everywhere else. Rows with a bias or a mask are copied first: the logits stay what the model made.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch

from lodger.runtime.attention import runs_kernels
from lodger.runtime.upload import staged, upload
from lodger.tasks import SamplingParams

AT_ONCE = 32  # rows at a time that are not simply the best token: their float32 copies bound the memory of a step
_BAN, _BANNED = -100.0, -1e4  # OpenAI's bias that bans a token, and what it comes to: less only than not allowed
_SMALLEST_TOP_P = 1e-9  # keeps the best token and what is equal to it
_PROMPT = 1 << 30  # beyond every count of generated tokens
_PREFILTER = 1024  # candidates looked at first for top-p; all of them where these do not hold enough probability


class Rules(NamedTuple):
    """Sampling parameters with nothing left open. The values that turn a rule off are the defaults."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, asked: SamplingParams, defaults: Mapping[str, Any]) -> Rules:
        """What was asked, else what the model's generation_config.json says, else off."""
        given = {name: getattr(asked, name) for name in cls._fields}
        rules = cls(**{**defaults, **{name: value for name, value in given.items() if value is not None}})
        return rules._replace(top_k=max(int(rules.top_k), 0))  # many clients write -1 for off

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def ranks(self) -> bool:
        """Needs the candidates in order of their probability."""
        return self.top_k > 0 or self.top_p < 1


class Masking(Protocol):
    """Says which tokens may come next."""

    mask: bytes  # one bit for each token, in int32 words


class Free:
    """Allows every token."""

    def __init__(self, vocab_size: int) -> None:
        self.mask = b"\xff" * 4 * -(-vocab_size // 32)


class Sampler:
    """The rules of one sequence and what they remember of it.

    Args:
        bias: by token, added to its logit.
        guide: its mask is that of the token to be chosen.
        logprobs: how many alternatives of each token are told (`likely`); None: not even its own probability.
    """

    def __init__(
        self,
        rules: Rules,
        seed: int | None,
        prompt: Sequence[int],
        vocab_size: int,
        device: torch.device,
        *,
        bias: Mapping[int, float] = MappingProxyType({}),
        guide: Masking | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.rules, self.guide, self.logprobs = rules, guide, logprobs
        self.takes_best = rules.greedy and not rules.penalises
        self.biased = bool(bias)
        self.edits = self.biased or guide is not None
        self.plain = self.takes_best and not self.edits  # simply the token with the highest logit
        self._bias = bias
        self._biases: tuple[torch.Tensor, torch.Tensor] | None = None
        self._fixed = _numbers(rules, vocab_size)
        self._random = random.Random(seed)
        self._drawn: float | None = None  # for the token that is not accepted yet
        self._memory: torch.Tensor | None = None
        self._remembered = prompt, vocab_size, device

    @property
    def memory(self) -> torch.Tensor | None:
        """[vocab_size] int32: times generated, and _PROMPT if in the prompt; None where no rule asks for it. Made for
        the first token that is chosen: those who wait for their turn have none."""
        if self._memory is None and self.rules.penalises:
            prompt, vocab_size, device = self._remembered
            memory = torch.zeros(vocab_size, dtype=torch.int32, device=device)
            memory.index_fill_(0, upload(prompt, torch.int64, device), _PROMPT)
            self._one = memory.new_ones(1)
            self._memory = memory
        return self._memory

    def add_bias(self, logits: torch.Tensor) -> None:
        """To its own [vocab_size]; of those that are `biased`."""
        if self._biases is None or self._biases[1].dtype != logits.dtype:
            numbers = [_BANNED if number <= _BAN else number for number in self._bias.values()]
            ids = upload(list(self._bias), torch.int64, logits.device)
            self._biases = ids, upload(numbers, logits.dtype, logits.device)
        logits.index_add_(0, *self._biases)

    def draw(self) -> float:
        """The next random number, 0 <= number < 1. The same one until a token is accepted: a step may be repeated."""
        if self._drawn is None:
            self._drawn = self._random.random()
        return self._drawn

    def numbers(self) -> tuple[float, ...]:
        """What a kernel wants to know (`kernels.sampling.draw`): rules of which the best token is drawn if `greedy`."""
        return (*self._fixed, 0.0 if self.rules.greedy else self.draw())

    def remember(self, token: torch.Tensor) -> None:
        """`token` [1] was chosen."""
        if self.memory is not None:
            self.memory.index_add_(0, token, self._one)

    def accept(self) -> None:
        """What was drawn is used up."""
        self._drawn = None


def _numbers(rules: Rules, vocab_size: int) -> tuple[float, ...]:
    if rules.greedy:
        shape = (1.0, 1.0, 1.0, 0.0)
    else:
        top_k = float(min(rules.top_k, vocab_size))
        shape = (rules.temperature, max(rules.top_p, _SMALLEST_TOP_P), top_k, min(rules.min_p, 1.0))
    return (*shape, rules.repetition_penalty, rules.presence_penalty, rules.frequency_penalty)


def sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """`choose` and `accept`, waited for."""
    chosen = choose(logits, samplers)
    accept(chosen, samplers)
    tokens: list[int] = chosen.tolist()
    return tokens


@torch.inference_mode()
def accept(chosen: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    """Tell the samplers what `choose` chose, once nothing else of the step can fail. Where this does, none was told."""
    remembering = [n for n, sampler in enumerate(samplers) if sampler.memory is not None]
    if remembering and (kernels := _kernels(chosen.device)):
        kernels.count(chosen, _places(remembering, samplers, chosen.device))
    else:
        for n in remembering:
            samplers[n].remember(chosen[n : n + 1])
    for sampler in samplers:
        sampler.accept()


@torch.inference_mode()
def choose(logits: torch.Tensor, samplers: Sequence[Sampler], best: torch.Tensor | None = None) -> torch.Tensor:
    """The next token of each row. Nothing waits for a GPU that runs our kernels.

    Args:
        logits: [rows, vocab_size].
        samplers: one for each row, not yet told of the choice.
        best: [rows] int64, the tokens with the highest logits where they are known; becomes the answer.

    Returns:
        [rows] int64 on the device.
    """
    chosen = logits.argmax(dim=-1) if best is None else best
    special = [n for n, sampler in enumerate(samplers) if not sampler.plain]
    _choose_others(chosen, logits, samplers, [n for n in special if not samplers[n].edits])
    edited = [n for n in special if samplers[n].edits]
    for start in range(0, len(edited), AT_ONCE):
        rows = edited[start : start + AT_ONCE]
        own, at = [samplers[n] for n in rows], upload(rows, torch.int64, logits.device)
        values = _edited(logits[at], own)
        found = values.argmax(dim=-1)
        _choose_others(found, values, own, [n for n, sampler in enumerate(own) if not sampler.takes_best])
        chosen[at] = found
    return chosen


def _choose_others(
    chosen: torch.Tensor, logits: torch.Tensor, samplers: Sequence[Sampler], others: Sequence[int]
) -> None:
    """Write the choices of those rows that do not take the best token."""
    if others and (kernels := _kernels(logits.device)):
        rules = _rules(others, samplers, logits.device)
        kernels.draw(logits, rules, _places(others, samplers, logits.device), chosen)
        return
    for start in range(0, len(others), AT_ONCE):
        rows = others[start : start + AT_ONCE]
        own, at = [samplers[n] for n in rows], upload(rows, torch.int64, logits.device)
        chosen[at] = _choose(logits[at].float(), own)


def _edited(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """The same logits, with biases added, and -inf where a mask does not allow a token."""
    for n, sampler in enumerate(samplers):
        if sampler.biased:  # views of all rows take 0.06 ms of 32
            sampler.add_bias(logits[n])
    guided = [(n, sampler.guide.mask) for n, sampler in enumerate(samplers) if sampler.guide is not None]
    if not guided:
        return logits
    flat = array("i")
    for _, mask in guided:
        flat.frombytes(mask)
    words = staged(flat, torch.int32, logits.device).to(logits.device, non_blocking=True).view(len(guided), -1)
    rows = [n for n, _ in guided]
    if kernels := _kernels(logits.device):
        kernels.forbid(logits, words, upload(rows, torch.int64, logits.device))
        return logits
    places = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (words[:, :, None] >> places & 1).bool().flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(~allowed, -torch.inf)
    return logits


@cache
def _kernels(device: torch.device) -> Any:
    """`kernels.sampling` where it runs."""
    return import_module("lodger.runtime.kernels.sampling") if runs_kernels(device) else None


def _rules(rows: Sequence[int], samplers: Sequence[Sampler], device: torch.device) -> torch.Tensor:
    """[rows, numbers] float32: of some of the samplers what the kernels want to know."""
    flat = array("f")
    for n in rows:
        flat.extend(samplers[n].numbers())
    return staged(flat, torch.float32, device).to(device, non_blocking=True).view(len(rows), -1)


def _places(rows: Sequence[int], samplers: Sequence[Sampler], device: torch.device) -> torch.Tensor:
    """[rows, 2] int64: which row of the logits, and the address of its memory."""
    flat = array("q")
    for n in rows:
        memory = samplers[n].memory
        flat.extend((n, 0 if memory is None else memory.data_ptr()))
    return staged(flat, torch.int64, device).to(device, non_blocking=True).view(len(rows), 2)


def _choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """[rows] from float32 logits, which are overwritten."""
    if any(sampler.rules.penalises for sampler in samplers):
        _penalise(logits, samplers)
    chosen = logits.argmax(dim=-1)
    for ranks in (False, True):
        rows = [n for n, s in enumerate(samplers) if not s.rules.greedy and s.rules.ranks is ranks]
        if rows:
            at = upload(rows, torch.int64, logits.device)
            pick = _draw_ranked if ranks else _draw
            chosen[at] = pick(logits[at], [samplers[n] for n in rows])
    return chosen


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[rows, 1] on the device and in the dtype of `like`."""
    return upload(values, like.dtype, like.device)[:, None]


def _penalise(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    rows = [n for n, sampler in enumerate(samplers) if sampler.rules.penalises]
    rules = [samplers[n].rules for n in rows]
    at = upload(rows, torch.int64, logits.device)
    memory = torch.stack([s.memory for s in samplers if s.memory is not None])
    counts = memory & (_PROMPT - 1)
    values = logits[at]
    repetition = _column([r.repetition_penalty for r in rules], values)
    repeated = torch.where(values < 0, values * repetition, values / repetition)
    values = torch.where(memory > 0, repeated, values)
    values -= _column([r.presence_penalty for r in rules], values) * (counts > 0)
    values -= _column([r.frequency_penalty for r in rules], values) * counts
    logits[at] = values


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Rows without top-k and top-p: the distribution in the order of the vocabulary."""
    probabilities = (logits / _column([s.rules.temperature for s in samplers], logits)).softmax(dim=-1)
    floor = _column([s.rules.min_p for s in samplers], logits) * probabilities.amax(dim=-1, keepdim=True)
    return _pick(probabilities.masked_fill_(probabilities < floor, 0), samplers)


def _draw_ranked(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Rows with top-k or top-p: the most probable candidates, in falling order."""
    vocab_size = logits.shape[-1]
    scaled = logits / _column([s.rules.temperature for s in samplers], logits)
    top_k = _column([s.rules.top_k or vocab_size for s in samplers], logits)
    top_p = _column([s.rules.top_p for s in samplers], logits)
    width = min(vocab_size, max(_PREFILTER, *(s.rules.top_k for s in samplers)))
    values, order = scaled.topk(width)
    total = scaled.logsumexp(dim=-1, keepdim=True)
    enough = (values.logsumexp(dim=-1, keepdim=True) - total).exp() >= top_p
    if any(s.rules.top_k == 0 for s in samplers) and not bool((enough | (top_k <= width)).all()):
        values, order = scaled.sort(dim=-1, descending=True)
    rank = torch.arange(values.shape[-1], device=logits.device)
    values = values.masked_fill(rank >= top_k, -torch.inf)
    total = torch.where(top_k < vocab_size, values.logsumexp(dim=-1, keepdim=True), total)
    probabilities = (values - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities  # probability of all better candidates
    floor = _column([s.rules.min_p for s in samplers], logits) * probabilities[:, :1]
    dropped = ((before >= top_p) & (rank > 0)) | (probabilities < floor)
    picked = _pick(probabilities.masked_fill_(dropped, 0), samplers)
    return order.gather(-1, picked[:, None])[:, 0]


def _pick(weights: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """The first index of each row at which the running sum passes the row's random number."""
    running = weights.cumsum(dim=-1, dtype=torch.float64)
    numbers = _column([s.draw() for s in samplers], running) * running[:, -1:]
    found = torch.searchsorted(running, numbers, right=True)[:, 0]
    return found.clamp_(max=weights.shape[-1] - 1)
