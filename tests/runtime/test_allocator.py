"""What torch may hold on a GPU follows from what was granted, and nobody waits for the GPU while a step is captured."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import pytest
import torch

from lodger.budget import SEGMENTS, workspaces
from lodger.runtime import allocator
from lodger.runtime.allocator import BACKSTOP, LOADING, Allowance, Grant, capturing, finish
from lodger.units import GIB, MIB

ALWAYS = workspaces((8, 0)) + SEGMENTS + BACKSTOP
DEVICE = torch.device("cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`fraction` of 64 GiB that torch may hold, and `allocated` bytes that it has."""
    card = SimpleNamespace(fraction=1.0, allocated=0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=64 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: card.allocated)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: setattr(card, "fraction", part)
    )
    return card


def test_the_largest_step_and_all_that_is_kept(card: SimpleNamespace) -> None:
    card.allocated = 5 * MIB  # somebody's, before the first model
    allowance = Allowance(DEVICE)
    allowance.grant("chat", Grant(kept=80 * MIB, step=150 * MIB, unfinished=30 * MIB, graphs=20 * MIB))
    assert allowance.most() == (5 + 100 + 150 + 30) * MIB + ALWAYS
    card.allocated = 200 * MIB  # the models' own
    allowance.grant("emb", Grant(kept=0, step=200 * MIB, unfinished=10 * MIB, graphs=20 * MIB))
    assert allowance.most() == (5 + 100 + 200 + 40) * MIB + ALWAYS
    with allowance.loading():
        assert card.fraction * 64 * GIB == (5 + 100 + 200 + 40) * MIB + ALWAYS + LOADING
    allowance.grant("gaps", Grant(kept=0, step=0, graphs=20 * MIB, gaps=7 * MIB))
    assert allowance.most() == (5 + 100 + 200 + 40 + 7) * MIB + ALWAYS, "between the steps of several models"
    allowance.revoke("gaps")
    allowance.turn("emb", asleep=True)
    assert card.fraction * 64 * GIB == allowance.most() == (5 + 100 + 150 + 30) * MIB + ALWAYS
    allowance.turn("emb", asleep=False)
    allowance.revoke("chat")
    assert allowance.most() == (5 + 200 + 10 + 20) * MIB + ALWAYS
    allowance.grant("later", Grant(kept=0, step=0, graphs=30 * MIB))
    assert allowance.most() == (5 + 200 + 10 + 20 + 30) * MIB + ALWAYS, "in a place of its own"
    for name in ("chat", "emb", "later"):
        allowance.revoke(name)
    assert allowance.most() == 5 * MIB + ALWAYS


def test_nobody_waits_for_the_gpu_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waited"))
    with capturing():
        assert not gc.isenabled()
        thread = threading.Thread(target=finish, args=(DEVICE,))
        thread.start()
        thread.join(0.05)
        done.append("captured")
    thread.join()
    assert done == ["captured", "waited"]
    assert gc.isenabled()


def test_without_a_gpu_there_is_nothing_to_trim() -> None:
    if not torch.cuda.is_available():
        allocator.trim()
        assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
