"""What the scheduler's decisions cost: chats by the lane that serves them, on a card that only tells how long it takes.

    python -m bench.schedule [SCENE ...]

The lane, its scheduler, and the turns of the device loop are the real ones. A step takes what an H100 was measured to
take for a model of Qwen3-4B's shape (docs/performance.md), and chooses no real token. So the numbers compare decisions;
they are predictions, and leave out what the host and other models take.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from bench.turns import turn
from lodger.budget import decode_steps
from lodger.runtime.generating import GenerateLane, Generation, Made
from lodger.sched.sequence import Sequence
from lodger.sched.step import GenerateStep, Row

CONTEXT = 8192
STOP, OTHER = 1, 7  # tokens
KEYS_MS = 144 * 1024 / 2.5e12 * 1e3  # to read one token's keys and values
PAIR_MS = 40 / (8000 * 8000 / 2)  # of attention, for each query and key in a prefill
LAUNCHES_MS = 14.0  # of the host, for a prefill that is not captured


class Card(NamedTuple):
    """Milliseconds of steps. A decode step's are by rows, with 320 tokens each, as captured."""

    decode: dict[int, float]
    prefill: float  # for 1,024 tokens
    captured: int  # tokens of the largest captured prefill

    def decode_ms(self, rows: tuple[Row, ...]) -> float:
        buckets, known = decode_steps(256), list(self.decode)
        count = buckets[bisect_left(buckets, len(rows))]
        at = max(bisect_left(known, count), 1)
        (low, high) = known[at - 1 : at + 1]
        share = (count - low) / (high - low)
        weights = [self.decode[n] - 320 * n * KEYS_MS for n in (low, high)]
        return weights[0] + share * (weights[1] - weights[0]) + KEYS_MS * sum(row.end for row in rows)

    def prefill_ms(self, step: GenerateStep) -> float:
        pairs = sum(len(row.tokens) * (row.start + len(row.tokens) / 2) for row in step.rows)
        return max(step.tokens / 1024 * self.prefill + pairs * PAIR_MS, self.decode[1])


BFLOAT16 = Card({1: 3.62, 8: 3.88, 32: 4.48, 128: 6.5, 256: 9.3}, prefill=11.3, captured=512)
INT8 = Card({1: 2.64, 8: 3.03, 32: 3.9, 128: 6.7, 256: 10.8}, prefill=12.4, captured=256)


class Chat(NamedTuple):
    prompt: int  # tokens
    made: int
    at: float = 0.0  # ms, when it comes


class Scene(NamedTuple):
    chats: Callable[[], list[Chat]]
    card: Card
    step: int  # tokens
    kv_tokens: int
    most: int = 256  # chats in one step
    limits: bool = True  # clients say how many tokens they want, and make so many


class Stepper:
    """In place of the runtime's: keeps the time instead of computing."""

    overlaps = True

    def __init__(self, runner: Any, cache: Any, most: int) -> None:
        runner.stepper, self._card = self, runner.card
        self.now = self.free = 0.0  # ms, of the host and of the card
        self.steps: list[GenerateStep] = []
        self.sequences: dict[int, tuple[Sequence, Chat]] = {}

    def warm_up(self, step_tokens: int) -> None:
        """Nothing is built."""

    def launch(self, step: GenerateStep, samplers: object) -> Any:
        captured = step.lane == "decode" or step.tokens <= self._card.captured
        took = self._card.decode_ms(step.rows) if step.lane == "decode" else self._card.prefill_ms(step)
        begin = max(self.free, self.now)
        self.now += 0 if captured else LAUNCHES_MS
        self.free = done = max(begin + took, self.now)
        self.steps.append(step)

        def tokens() -> list[int]:
            self.now = max(self.now, done)
            return [self._token(row) for row in step.rows if row.sample]

        return SimpleNamespace(step=step, tokens=tokens, likely=dict)

    def _token(self, row: Row) -> int:
        sequence, chat = self.sequences[row.sequence]
        return STOP if row.end - sequence.prompt_length + 1 >= chat.made else OTHER


def play(scene: Scene, rounds: int = 2) -> dict[str, float]:
    """The scene's last round; in the ones before, the scheduler has learned how long answers are."""
    runner = SimpleNamespace(device=SimpleNamespace(type="cuda"), card=scene.card)
    cache: Any = SimpleNamespace(blocks=scene.kv_tokens // 16, block_size=16)
    with patch("lodger.runtime.generating.Stepper", Stepper):
        lane = GenerateLane("chat", runner, cache, scene.step, scene.most)  # type: ignore[arg-type]
    for number in range(rounds):
        found = _round(lane, runner.stepper, scene, 10_000 * (number + 1))
    return found


def _round(lane: GenerateLane, stepper: Stepper, scene: Scene, first: int) -> dict[str, float]:
    stepper.now = stepper.free = 0.0
    stepper.steps.clear()
    stepper.sequences.clear()
    coming = sorted(enumerate(scene.chats(), first), key=lambda one: one[1].at)
    times: dict[int, list[float]] = {number: [] for number, _ in coming}
    while True:
        while coming and coming[0][1].at <= stepper.now:
            number, chat = coming.pop(0)
            most = chat.made if scene.limits else CONTEXT - chat.prompt
            sequence = Sequence(number, [number] * chat.prompt, max_new_tokens=most)
            stepper.sequences[number] = sequence, chat
            note = times[number].append
            lane.add(Generation(sequence, None, frozenset([STOP]), _noting(note, stepper)))  # type: ignore[arg-type]
        if any(turn(lane, scene.step)):
            continue
        if not coming:
            return _told(stepper, times)
        stepper.now = max(stepper.now, coming[0][1].at)


def _noting(note: Callable[[float], None], stepper: Stepper) -> Callable[[Made], None]:
    return lambda made: note(stepper.now)


def _told(stepper: Stepper, times: dict[int, list[float]]) -> dict[str, float]:
    chats = {number: chat for number, (_, chat) in stepper.sequences.items()}
    gaps = sorted(after - before for own in times.values() for before, after in zip(own, own[1:], strict=False))
    firsts = sorted(own[0] - chats[number].at for number, own in times.items())
    decodes = [step for step in stepper.steps if step.lane == "decode"]
    prefilled = sum(step.tokens for step in stepper.steps if step.lane == "prefill")
    return {
        "tok/s": sum(map(len, times.values())) / max(own[-1] for own in times.values()) * 1e3,
        "decode steps": len(decodes),
        "rows": sum(step.tokens for step in decodes) / len(decodes),
        "prefill steps": len(stepper.steps) - len(decodes),
        "put back": sum(sequence.preemptions for sequence, _ in stepper.sequences.values()),
        "tokens again": prefilled - sum(chat.prompt for chat in chats.values()),
        "first p50": firsts[len(firsts) // 2],
        "first p99": firsts[len(firsts) * 99 // 100],
        "gap p99": gaps[len(gaps) * 99 // 100],
        "gap max": gaps[-1],
    }


def _mixed(count: int, every: float = 0.0) -> list[Chat]:
    """Prompts of 50 to 4,000 tokens, short ones more often, and answers of 20 to 800; one `every` so many ms or so."""
    pick, at, chats = random.Random(1), 0.0, []
    for _ in range(count):
        at += pick.expovariate(1 / every) if every else 0.0
        chats.append(Chat(int(50 * 80 ** pick.random()), pick.randint(20, 800), at))
    return chats


def _unlike() -> list[Chat]:
    pick = random.Random(1)
    return [Chat(256, pick.randint(40, 216)) for _ in range(128)]


TIGHT: dict[str, Any] = {"card": INT8, "step": 3168, "kv_tokens": 25_344, "most": 150}  # three models in 11.2 GiB
AMPLE: dict[str, Any] = {"card": BFLOAT16, "step": 8192, "kv_tokens": 400_000}
SCENES = {
    "128-tight": Scene(lambda: [Chat(256, 128)] * 128, **TIGHT),
    "128-tight-no-limits": Scene(lambda: [Chat(256, 128)] * 128, limits=False, **TIGHT),
    "128-unlike-tight": Scene(_unlike, limits=False, **TIGHT),
    "128": Scene(lambda: [Chat(256, 128)] * 128, **AMPLE),
    "256": Scene(lambda: [Chat(256, 128)] * 256, **AMPLE),
    "mixed-tight": Scene(lambda: _mixed(120), limits=False, **TIGHT),
    "mixed-arriving-tight": Scene(lambda: _mixed(120, every=120), limits=False, **TIGHT),
    "mixed": Scene(lambda: _mixed(200), limits=False, **AMPLE),
    "long-beside": Scene(lambda: [Chat(256, 400)] * 32 + [Chat(7000, 50, 500 + 400 * n) for n in range(6)], **AMPLE),
}


def main() -> None:
    for number, name in enumerate(sys.argv[1:] or SCENES):
        found = play(SCENES[name])
        if not number:
            print(" " * 22 + "".join(f"{key:>14}" for key in found))
        print(f"{name:22}" + "".join(f"{value:>14,.0f}" for value in found.values()), flush=True)


if __name__ == "__main__":
    main()
