"""What a checkpoint of four-bit weights takes on each kind of device, and what a plan says of it."""

from __future__ import annotations

import msgspec
import pytest
from model_facts import QWEN3_4B, candidate

from lodger.catalogue.facts import Int4Weights
from lodger.catalogue.int4 import resident_bytes
from lodger.device.view import DeviceView
from lodger.errors import Unsupported
from lodger.plan import footprint
from lodger.plan.explain import plan_json, plan_text
from lodger.plan.planner import plan
from lodger.units import GIB

CARD = DeviceView(id="cuda:0", kind="cuda", name="A100", total=80 * GIB, free=40 * GIB, compute_capability=(8, 0))
OLD = msgspec.structs.replace(CARD, name="T4", compute_capability=(7, 5))
LAPTOP = DeviceView(id="cpu", kind="cpu", name="CPU", total=64 * GIB, free=50 * GIB)

SHAPES = [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728)]
PRODUCTS = 36 * sum(rows * columns for rows, columns in SHAPES)
AWQ = msgspec.structs.replace(  # as Qwen3-4B-AWQ's headers say
    QWEN3_4B,
    path="/models/Qwen3-4B-AWQ",
    stored_bytes={"float16": 2 * (QWEN3_4B.parameters - PRODUCTS), "int4": PRODUCTS // 2},
    int4=Int4Weights(
        method="awq",
        group=128,
        parameters=PRODUCTS,
        resident=36 * sum(resident_bytes(rows, columns, 128) for rows, columns in SHAPES),
    ),
)


def test_qwen3_4b_takes_half_a_byte_for_each_number_of_its_layers_and_four_for_each_group() -> None:
    found = footprint.weights(AWQ, "float16", CARD)
    assert found == 2 * (AWQ.parameters - PRODUCTS) + PRODUCTS // 2 + PRODUCTS // 128 * 4
    assert found / GIB == pytest.approx(2.52, abs=0.05)


@pytest.mark.parametrize(("device", "dtype"), [(LAPTOP, "float32"), (OLD, "float16"), (CARD, "float32")])
def test_where_no_kernel_multiplies_with_them_they_are_ordinary_weights(device: DeviceView, dtype: str) -> None:
    assert footprint.weights(AWQ, dtype, device) == footprint.weights(QWEN3_4B, dtype, device)
    made = plan(device, (candidate("chat", AWQ, dtype=dtype, context_length=2048),)) if device is not OLD else None
    if made:
        assert made.models[0].quantization is None
        assert f"its int4 weights become {dtype}, as no kernel multiplies with them here" in made.models[0].notes


def test_a_plan_says_int4_and_takes_the_dtype_of_what_is_not_quantised() -> None:
    made = plan(CARD, (candidate("chat", AWQ),))
    assert made.models[0].dtype == "float16"
    assert "chat, float16, int4 weights, context" in plan_text(made)
    assert [model["quantization"] for model in plan_json(made)["models"]] == ["int4"]
    dense = plan(CARD, (candidate("chat", QWEN3_4B),)).models[0].budget
    assert made.models[0].budget.weights < 0.35 * dense.weights
    assert made.models[0].budget.activations == dense.activations + footprint.QUANTISED_WORKSPACE


def test_it_does_not_become_int8() -> None:
    with pytest.raises(Unsupported, match="chat holds int4 weights, which do not become int8") as refused:
        plan(CARD, (candidate("chat", AWQ, quantization="int8"),))
    assert refused.value.hint == "Leave its quantization out."
