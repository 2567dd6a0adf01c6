"""A fraction of the whole card, as vLLM's users write it, becomes bytes that the plan keeps to."""

from __future__ import annotations

from model_facts import BGE_M3

from lodger.device.fake import parse_device
from lodger.plan.fraction import in_bytes
from lodger.plan.planner import plan
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.units import GIB

CARD = parse_device("80GiB,free=14GiB")


def test_a_fraction_is_a_limit_in_bytes_of_the_whole_card_and_is_said_back() -> None:
    asked = Candidate(ModelSpec(uid="m", memory_fraction=0.05, notes=("first",)), BGE_M3)
    found = in_bytes(asked, CARD)
    assert (found.spec.memory, found.spec.memory_fraction) == (4 * GIB, None)
    said = "gpu_memory_utilization 0.05 of 80.00 GiB means at most 4.00 GiB here; 14.00 GiB are free."
    assert found.spec.notes == ("first", said)
    assert plan(CARD, (found,)).models[0].budget.total <= 4 * GIB


def test_the_smaller_of_two_limits_holds() -> None:
    asked = Candidate(ModelSpec(uid="m", memory_fraction=0.5, memory=3 * GIB), BGE_M3)
    assert in_bytes(asked, CARD).spec.memory == 3 * GIB


def test_without_a_fraction_nothing_changes() -> None:
    asked = Candidate(ModelSpec(uid="m"), BGE_M3)
    assert in_bytes(asked, CARD) is asked
