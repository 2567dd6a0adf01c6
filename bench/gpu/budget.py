"""128 chats at once while three models share 11.2 GiB, the chat model with weights of one byte.

    python -m bench.gpu.budget [--out FILE]

The models of `bench.gpu.memory`, planned and granted as there, in one engine. Every chat is a prompt of 256 tokens and
128 greedy ones; prompts have nothing in common. What the whole card holds is told by NVML.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch

from bench.gpu.card import used
from bench.gpu.folders import full_size
from bench.gpu.memory import DEVICE, KINDS, chat, load, planned
from bench.gpu.part import options, write
from lodger.engines.native import NativeEngine
from lodger.units import GIB

BUDGET, CHATS, PROMPT, MADE = 11.2, 128, 256, 128
ROUNDS = 3  # of which the first warms up


async def chats(model: Any) -> None:
    """Prompts differ from their first token on, so that no prefix is shared."""
    await asyncio.gather(*(chat(model, PROMPT, MADE, KINDS[0], seed) for seed in range(CHATS)))


def main() -> None:
    given = options(__doc__)
    before = used()
    torch.empty(1, device=DEVICE)
    with full_size() as folders:
        made, wanted = planned(folders, BUDGET, "int8")
        models = load(NativeEngine("cuda:0"), made, wanted, "budget")
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        asyncio.run(chats(models["chat"]))
        rates.append(CHATS * MADE / (time.perf_counter() - start))
        print(f"{rates[-1]:,.0f} tok/s, {(used() - before) / GIB:.2f} GiB held", flush=True)
    grant = made.models[0]
    raw = {"budget": BUDGET, "chats": CHATS, "prompt": PROMPT, "made": MADE, "rates": rates, "held": used() - before}
    write(given, raw | {"kv_tokens": grant.kv_tokens, "sequences": grant.budget.sequences})


if __name__ == "__main__":
    main()
