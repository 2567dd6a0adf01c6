"""What weights of one byte do to a plan, and where they are refused before anything is loaded."""

from __future__ import annotations

import msgspec
import pytest
from model_facts import BGE_M3, QWEN3_4B, candidate, trio

from lodger.device.view import DeviceView
from lodger.errors import Unsupported
from lodger.plan import footprint
from lodger.plan.explain import plan_json, plan_text
from lodger.plan.planner import plan
from lodger.units import GIB

CARD = DeviceView(
    id="cuda:0", kind="cuda", name="A100", total=80 * GIB, free=16 * GIB, compute_capability=(8, 0), driver="580"
)
LAPTOP = DeviceView(id="cpu", kind="cpu", name="CPU", total=32 * GIB, free=20 * GIB)


def test_qwen3_4b_takes_a_byte_for_each_number_of_its_layers() -> None:
    dense, int8 = (footprint.weights(QWEN3_4B, "bfloat16", CARD, int8=asked) for asked in (False, True))
    products = 36 * (2560 * 6144 + 4096 * 2560 + 2560 * 19456 + 9728 * 2560)
    scales = 36 * (6144 + 2560 + 19456 + 2560) * 4
    assert dense - int8 == products - scales
    assert int8 / GIB == pytest.approx(4.1, abs=0.05)


def test_the_plan_says_what_it_counted() -> None:
    dense, int8 = plan(CARD, trio()), plan(CARD, trio(quantization="int8"))
    assert int8.models[0].budget.weights < 0.6 * dense.models[0].budget.weights
    assert [model.quantization for model in int8.models] == ["int8", None, None]
    assert "chat, bfloat16, int8 weights, context" in plan_text(int8)
    assert "int8" not in plan_text(dense)
    assert [model["quantization"] for model in plan_json(int8)["models"]] == ["int8", None, None]


def test_what_products_take_beside_their_results_is_counted() -> None:
    ample = msgspec.structs.replace(CARD, free=70 * GIB)
    dense, int8 = (
        plan(ample, (candidate("chat", QWEN3_4B, quantization=asked),)).models[0] for asked in (None, "int8")
    )
    assert int8.budget.activations == dense.budget.activations + footprint.QUANTISED_WORKSPACE


def test_int8_and_not_int8_share_no_weights() -> None:
    both = plan(CARD, (candidate("a", QWEN3_4B), candidate("b", QWEN3_4B, quantization="int8")))
    assert [model.shares for model in both.models] == [None, None]
    alike = plan(CARD, (candidate("a", QWEN3_4B, quantization="int8"), candidate("b", QWEN3_4B, quantization="int8")))
    assert [model.shares for model in alike.models] == [None, "a"]


def test_an_encoder_keeps_its_weights_and_says_so() -> None:
    asked = plan(CARD, (candidate("emb", BGE_M3, quantization="int8"),)).models[0]
    plain = plan(CARD, (candidate("emb", BGE_M3),)).models[0]
    assert asked.budget == plain.budget
    assert "quantization has no effect: encoders keep float16" in asked.notes
    plan(LAPTOP, (candidate("emb", BGE_M3, quantization="int8"),))


@pytest.mark.parametrize(
    ("device", "options", "where"),
    [
        (LAPTOP, {}, "on a CPU"),
        (CARD, {"dtype": "float32"}, "in float32"),
        (DeviceView(id="cuda:0", kind="cuda", name="T4", total=16 * GIB, free=15 * GIB, compute_capability=(7, 5)), {},
         "on a GPU of compute capability 7.5"),
    ],
)  # fmt: skip
def test_elsewhere_it_is_refused_with_what_it_would_save(
    device: DeviceView, options: dict[str, str], where: str
) -> None:
    with pytest.raises(Unsupported, match=where) as refused:
        plan(device, (candidate("chat", QWEN3_4B, quantization="int8", **options),))
    assert "saves 3.38 GiB" in (refused.value.hint or "")
