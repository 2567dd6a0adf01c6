"""Random choices for all rows of a step in three launches: nothing is sorted, nothing waits for the host.

`_scan` reads the logits once, in chunks, and keeps the highest of each chunk and the sum of its exponentials. The k-th
highest of those is no higher than the k-th highest logit of all, so what is not below it (`_gather`) are few candidates
that hold the top k. `_pick` finds thresholds among them, four bits at a time: the k-th highest number, the one at which
top-p is reached, and the one at which the running probability passes the random number. Where the candidates hold too
little probability for top-p, or are too many, it does the same with all logits.

Numbers are compared by their bits as integers in the same order, and equals rank by their place in the vocabulary.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 1024  # logits
CANDIDATES = 1024  # of one row
RULES = 8  # numbers of each row: temperature, top_p, top_k, min_p, three penalties, its random number
PEAKS_FOR_TOP_P = 128  # chunks from which candidates are taken where top-k does not say how many
LEAST: tl.constexpr = tl.constexpr(-2147483648)  # of all keys
BELOW_1: tl.constexpr = tl.constexpr(0.999999)  # by more than two sums of the same weights differ in any order
PROMPT = 1 << 30  # in a memory: the token is in the prompt


def draw(logits: torch.Tensor, rules: torch.Tensor, places: torch.Tensor, chosen: torch.Tensor) -> None:
    """
    Args:
        logits: [any, vocab_size], the last dimension contiguous.
        rules: [rows, RULES] float32: temperature; top_p, 1 or more for off; top_k, 0 for off; min_p, 0 for off;
            repetition penalty, 1 for off; presence and frequency penalty, 0 for off; a random number 0 <= u < 1.
        places: [rows, 2] int64: which of `logits`; the address of its memory [vocab_size] int32, or 0. A memory holds
            how often a token was generated, and PROMPT if it is in the prompt.
        chosen: [any] int64, written where `places` says.
    """
    vocab_size, rows = logits.shape[-1], len(rules)
    chunks = triton.cdiv(vocab_size, CHUNK)
    # Each a tensor of its own: kernels are built again for addresses that are not multiples of 16.
    peaks, sums = (logits.new_empty(rows, chunks, dtype=torch.float32) for _ in range(2))
    values = logits.new_empty(rows, CANDIDATES, dtype=torch.float32)
    tokens = logits.new_empty(rows, CANDIDATES, dtype=torch.int32)
    counts = logits.new_empty(rows, dtype=torch.int32)
    given = logits, rules, places, peaks, sums, logits.stride(0), vocab_size
    same = {"CHUNK": CHUNK, "PROMPT": PROMPT, "RULES": RULES}
    padded = {"CHUNKS": triton.next_power_of_2(chunks), "CANDIDATES": CANDIDATES}
    _scan[(rows, chunks)](*given, **same, num_warps=4)
    _gather[(rows,)](*given, values, tokens, counts, PEAKS_FOR_TOP_P, **same, **padded, num_warps=4)
    _pick[(rows,)](*given, values, tokens, counts, chosen, **same, **padded, num_warps=8)


def forbid(logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
    """Tokens that are not allowed get -inf.

    Args:
        logits: [any, vocab_size], the last dimension contiguous; changed.
        allowed: [rows, words] int32: one bit for each token, the lowest of a word first.
        rows: [rows] int64: which of `logits`.
    """
    grid = len(rows), triton.cdiv(logits.shape[-1], CHUNK)
    _forbid[grid](logits, allowed, rows, logits.stride(0), allowed.shape[1], logits.shape[-1], CHUNK=CHUNK, num_warps=4)


def count(chosen: torch.Tensor, places: torch.Tensor) -> None:
    """One more of the chosen token in the memory of each row that has one. `places` as for `draw`."""
    _count[(len(places),)](chosen, places, num_warps=1)


@triton.jit
def _scaled(logits, memory, at, known, rules, PROMPT: tl.constexpr):
    """Logits at `at` in float32 with penalties and temperature; -inf where not `known`."""
    x = tl.load(logits + at, mask=known, other=float("-inf")).to(tl.float32)
    if memory != 0:
        seen = tl.load(memory.to(tl.pointer_type(tl.int32)) + at, mask=known, other=0)
        times = (seen & (PROMPT - 1)).to(tl.float32)
        repetition = tl.load(rules + 4)
        x = tl.where(seen != 0, tl.where(x < 0, x * repetition, x / repetition), x)
        x = x - tl.where(times > 0, tl.load(rules + 5), 0.0) - times * tl.load(rules + 6)
    return x / tl.load(rules)


@triton.jit
def _key(x):
    """int32 in the order of the float32."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(key):
    """The float32 that `_key` made this of."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _scan(
    logits, rules, places, peaks, sums, stride, vocab_size,
    CHUNK: tl.constexpr, PROMPT: tl.constexpr, RULES: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rules += row * RULES
    logits += tl.load(places + 2 * row) * stride
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _scaled(logits, tl.load(places + 2 * row + 1), at, at < vocab_size, rules, PROMPT)
    peak = tl.max(x, 0)
    place = row * tl.num_programs(1) + chunk
    tl.store(peaks + place, peak)
    tl.store(sums + place, tl.sum(tl.exp(x - tl.maximum(peak, -1e30)), 0))  # a chunk may be all -inf


@triton.jit(do_not_specialize=["for_top_p"])
def _gather(
    logits, rules, places, peaks, sums, stride, vocab_size, values, tokens, counts, for_top_p,
    CHUNK: tl.constexpr, PROMPT: tl.constexpr, RULES: tl.constexpr, CHUNKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The candidates of each row that ranks, in the order of the vocabulary. A row that does not: sums after min-p."""
    row = tl.program_id(0).to(tl.int64)
    rules += row * RULES
    logits += tl.load(places + 2 * row) * stride
    memory = tl.load(places + 2 * row + 1)
    chunks = tl.cdiv(vocab_size, CHUNK)
    peaks += row * chunks
    sums += row * chunks
    chunk = tl.arange(0, CHUNKS)
    peak = tl.load(peaks + chunk, mask=chunk < chunks, other=float("-inf"))
    top = tl.max(peak, 0)
    top_k, min_p = tl.load(rules + 2).to(tl.int32), tl.load(rules + 3)
    ranked = (top_k > 0) | (tl.load(rules + 1) < 1)
    wanted = tl.minimum(tl.where(top_k > 0, top_k, for_top_p), chunks)
    key = _key(peak)
    low = tl.full([], LEAST, tl.int32)
    digit = tl.arange(0, 16)
    for n in range(8):  # four bits at a time
        keys = low + (digit << (28 - 4 * n))
        reached = tl.sum((key[None, :] >= keys[:, None]).to(tl.int32), 1) >= wanted
        low += tl.sum((reached & (digit > 0)).to(tl.int32), 0) << (28 - 4 * n)
    if (ranked == 0) & (min_p > 0):
        low = _key(top + tl.log(min_p) - 1e-3)  # chunks below it hold nothing that min-p keeps
    found = 0
    if ranked | (min_p > 0):
        for at_chunk in range(chunks):
            own = tl.load(peaks + at_chunk)
            if (_key(own) >= low) & (own > float("-inf")):
                at = at_chunk * CHUNK + tl.arange(0, CHUNK)
                x = _scaled(logits, memory, at, at < vocab_size, rules, PROMPT)
                if ranked:
                    taken = (_key(x) >= low) & (x > float("-inf"))
                    place = found + tl.cumsum(taken.to(tl.int32), 0) - 1
                    fits = taken & (place < CANDIDATES)
                    tl.store(values + row * CANDIDATES + place, x, mask=fits)
                    tl.store(tokens + row * CANDIDATES + place, at, mask=fits)
                    found += tl.sum(taken.to(tl.int32), 0)
                else:
                    kept = tl.exp(x - top) >= min_p
                    tl.store(sums + at_chunk, tl.sum(tl.where(kept, tl.exp(x - own), 0.0), 0))
            elif ranked == 0:
                tl.store(sums + at_chunk, 0.0)
    tl.store(counts + row, found)


@triton.jit
def _block(
    logits, memory, rules, values, tokens, at, count, all_of_it, top, CHUNK: tl.constexpr, PROMPT: tl.constexpr
):  # fmt: skip
    """Keys, weights and tokens of the candidates, or of all logits, at `at` and behind."""
    place = at + tl.arange(0, CHUNK)
    known = place < count
    if all_of_it:
        x = _scaled(logits, memory, place, known, rules, PROMPT)
        token = place
    else:
        x = tl.load(values + place, mask=known, other=float("-inf"))
        token = tl.load(tokens + place, mask=known, other=0)
    return _key(x), tl.exp(x - top), token, known


@triton.jit
def _highest(
    logits, memory, rules, values, tokens, count, all_of_it, top, floor, lowest, wanted, counted, more,
    CHUNK: tl.constexpr, PROMPT: tl.constexpr,
):  # fmt: skip
    """The highest key so that what is not below it is at least `wanted`, or `more`: in weight, of what has at least the
    key `lowest` and the weight `floor`, or in numbers if `counted`. Four bits at a time."""
    low = tl.full([], LEAST, tl.int32)
    digit = tl.arange(0, 16)
    for n in range(8):
        keys = low + (digit << (28 - 4 * n))
        total = tl.zeros([16, CHUNK], tl.float32)
        for at in range(0, count, CHUNK):
            key, weight, _, known = _block(
                logits, memory, rules, values, tokens, at, count, all_of_it, top, CHUNK, PROMPT
            )
            taken = (key >= lowest) & (weight >= floor) & known
            amount = tl.where(taken, tl.where(counted, 1.0, weight), 0.0)
            total += tl.where(key[None, :] >= keys[:, None], amount[None, :], 0.0)
        held = tl.sum(total, 1)
        enough = (held > wanted) | ((held == wanted) & (more == 0))
        low += tl.sum((enough & (digit > 0)).to(tl.int32), 0) << (28 - 4 * n)
    return low


@triton.jit
def _weight_from(
    logits, memory, rules, values, tokens, count, all_of_it, top, floor, lowest,
    CHUNK: tl.constexpr, PROMPT: tl.constexpr,
):  # fmt: skip
    """Together, of what has at least the key `lowest` and the weight `floor`."""
    total = tl.zeros([CHUNK], tl.float32)
    for at in range(0, count, CHUNK):
        key, weight, _, known = _block(logits, memory, rules, values, tokens, at, count, all_of_it, top, CHUNK, PROMPT)
        total += tl.where(known & (key >= lowest) & (weight >= floor), weight, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _nth_equal(
    logits, memory, rules, values, tokens, count, all_of_it, top, own, nth, CHUNK: tl.constexpr, PROMPT: tl.constexpr
):  # fmt: skip
    """The token with the key `own` that has `nth` before it in the vocabulary, or the last one."""
    passed = 0
    token = tl.full([], -1, tl.int32)
    for at in range(0, count, CHUNK):
        key, _, ids, known = _block(logits, memory, rules, values, tokens, at, count, all_of_it, top, CHUNK, PROMPT)
        equal = (key == own) & known
        order = passed + tl.cumsum(equal.to(tl.int32), 0) - 1
        token = tl.maximum(token, tl.max(tl.where(equal & (order <= nth), ids, -1), 0))
        passed += tl.sum(equal.to(tl.int32), 0)
    return token


@triton.jit
def _in_order(
    logits, memory, rules, held, chunk, top, floor, target, vocab_size, CHUNK: tl.constexpr, PROMPT: tl.constexpr
):  # fmt: skip
    """The first token of the vocabulary at which the weight up to it passes `target`. `held`: of each chunk."""
    running = tl.cumsum(held, 0)
    own = tl.sum(((running <= target) & (chunk >= 0)).to(tl.int32), 0)
    own = tl.minimum(own, tl.max(tl.where(held > 0, chunk, 0), 0))
    before = tl.sum(tl.where((chunk >= 0) & (chunk < own), held, 0.0), 0)
    at = own * CHUNK + tl.arange(0, CHUNK)
    weight = tl.exp(_scaled(logits, memory, at, at < vocab_size, rules, PROMPT) - top)
    weight = tl.where(weight >= floor, weight, 0.0)
    passes = (before + tl.cumsum(weight, 0) > target) & (weight > 0)
    first = tl.min(tl.where(passes, at, 2147483647), 0)
    return tl.where(first < 2147483647, first, tl.max(tl.where(weight > 0, at, 0), 0))


@triton.jit
def _pick(
    logits, rules, places, peaks, sums, stride, vocab_size, values, tokens, counts, chosen,
    CHUNK: tl.constexpr, PROMPT: tl.constexpr, RULES: tl.constexpr, CHUNKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    rules += row * RULES
    place = tl.load(places + 2 * row)
    logits += place * stride
    memory = tl.load(places + 2 * row + 1)
    values += row * CANDIDATES
    tokens += row * CANDIDATES
    chunks = tl.cdiv(vocab_size, CHUNK)
    chunk = tl.arange(0, CHUNKS)
    peak = tl.load(peaks + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    held = tl.load(sums + row * chunks + chunk, mask=chunk < chunks, other=0.0)
    top = tl.max(peak, 0)
    held = held * tl.exp(peak - top)
    total = tl.sum(held, 0)
    top_p, top_k = tl.load(rules + 1), tl.load(rules + 2).to(tl.int32)
    floor, number = tl.load(rules + 3), tl.load(rules + 7)
    if (top_k > 0) | (top_p < 1):
        count = tl.load(counts + row)
        lowest = tl.full([], LEAST, tl.int32)
        all_of_it = count > CANDIDATES
        if top_k == 0:
            if all_of_it == 0:
                all_of_it = _weight_from(logits, memory, rules, values, tokens, count, all_of_it, top, 0.0, lowest,
                                         CHUNK, PROMPT) < top_p * total  # fmt: skip
        else:
            all_of_it = all_of_it | (top_k > chunks)
        count = tl.where(all_of_it, vocab_size, count)
        target, own = total, lowest
        for search in range(3):  # for top-k, for top-p, for the random number
            least = tl.where(search == 2, floor, 0.0)
            if (search == 2) | ((search == 1) & (top_k > 0)):
                total = _weight_from(logits, memory, rules, values, tokens, count, all_of_it, top, least, lowest,
                                     CHUNK, PROMPT)  # fmt: skip
            target = tl.where(search == 2, tl.minimum(number * total, total * BELOW_1), top_p * total)
            target = tl.where(search == 0, top_k.to(tl.float32), target)
            if (search == 2) | ((search == 1) & (top_p < 1)) | ((search == 0) & (top_k > 0)):
                own = _highest(logits, memory, rules, values, tokens, count, all_of_it, top, least, lowest, target,
                               search == 0, search == 2, CHUNK, PROMPT)  # fmt: skip
                lowest = tl.where(search == 2, lowest, tl.maximum(lowest, own))
        own = tl.where(own == LEAST, _key(top), own)
        before = _weight_from(logits, memory, rules, values, tokens, count, all_of_it, top, floor,
                              tl.maximum(lowest, own + 1), CHUNK, PROMPT)  # fmt: skip
        nth = (target - before) / tl.exp(_number(own) - top)  # of those that are equal; rounding may make it negative
        nth = tl.minimum(tl.maximum(nth, 0.0), 1e9).to(tl.int32)
        token = _nth_equal(logits, memory, rules, values, tokens, count, all_of_it, top, own, nth, CHUNK, PROMPT)
    else:
        token = _in_order(
            logits, memory, rules, held, tl.where(chunk < chunks, chunk, -1), top, floor, number * total, vocab_size,
            CHUNK, PROMPT,
        )  # fmt: skip
    # Logits that are no numbers have no such token. A negative one would be read as an address by the next step.
    tl.store(chosen + place, tl.maximum(token, 0).to(tl.int64))


@triton.jit
def _forbid(logits, allowed, rows, stride, words, vocab_size, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    word = tl.load(allowed + row * words + at // 32, mask=at // 32 < words, other=0)
    banned = ((word >> (at % 32)) & 1) == 0
    tl.store(logits + tl.load(rows + row) * stride + at, float("-inf"), mask=banned & (at < vocab_size))


@triton.jit
def _count(chosen, places):
    row = tl.program_id(0).to(tl.int64)
    memory = tl.load(places + 2 * row + 1)
    if memory != 0:
        entry = memory.to(tl.pointer_type(tl.int32)) + tl.load(chosen + tl.load(places + 2 * row))
        tl.store(entry, tl.load(entry) + 1)
