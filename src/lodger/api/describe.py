"""What is said of a model: the union of what Xinference's, Dify's, RAGFlow's and OpenAI's clients read.

Fields that a client asks for and that nobody can know of a folder (languages, hub, revision) are there and empty.
"""

from __future__ import annotations

from typing import Any

from lodger.catalogue.facts import ModelFacts
from lodger.service import ModelStatus
from lodger.spec import ModelSpec

ABILITIES = {"embedding": ["embed"], "rerank": ["rerank"]}
MODEL_TYPES = {"chat": "LLM", "embedding": "embedding", "rerank": "rerank"}


def description(model: ModelStatus, address: str) -> dict[str, Any]:
    """Xinference's description of one model that serves, whose facts are known. ``context_length`` and ``max_tokens``
    are the tokens really served."""
    facts = model.facts
    assert facts is not None, "a model that serves has been inspected"
    about = {
        "model_type": MODEL_TYPES[facts.kind],
        "address": address,
        "accelerators": [number for device in model.devices for number in accelerators(device)],
        "model_name": model_name(model),
        "model_ability": abilities(model),
        "model_engine": model.spec.engine or "native",
        "model_format": facts.int4.method if facts.int4 else "pytorch",
        "model_description": model.spec.description,
        "model_hub": None,
        "model_revision": None,
        "quantization": _quantization(model.spec, facts),
        "context_length": model.context_length,
        "max_tokens": model.context_length,
        "dtype": model.dtype,
        "notes": list(model.spec.notes),
        "n_worker": 1,
        "replica": len(model.devices) or model.spec.replicas,
    }
    return about | _of_kind(model)


def _quantization(spec: ModelSpec, facts: ModelFacts) -> str:
    """As Xinference spells it for a format: "Int4" for "awq" and "gptq"."""
    if facts.int4 is not None:
        return "Int4"
    return spec.quantization if facts.causal and spec.quantization else "none"


def listing(model: ModelStatus, address: str) -> dict[str, Any]:
    """One row of ``GET /v1/models``. RAGFlow and Dify look at nothing here but id, type and limits; Xinference's own
    tests at ``owned_by``."""
    head = {"id": model.uid, "object": "model", "created": int(model.created), "owned_by": "xinference"}
    return head | description(model, address)


def accelerators(device: str | None) -> list[str]:
    """The number of a GPU; nothing for a CPU."""
    return [device.partition(":")[2]] if device and device != "cpu" else []


def model_name(model: ModelStatus) -> str:
    """The name it was launched by, else its folder's."""
    return model.spec.name or (model.facts.name if model.facts else model.uid)


def abilities(model: ModelStatus) -> list[str]:
    """ "chat" without "generate", which Dify's helper would prefer; "tools" where the chat template knows of them."""
    kind = model.facts.kind if model.facts else model.spec.kind
    if kind == "chat" and model.facts is not None and not model.facts.chat_template:
        return ["generate"]
    if kind == "chat":
        return ["chat", "tools"] if model.facts is not None and model.facts.tools else ["chat"]
    return ABILITIES.get(kind or "", [])


def size_in_billions(parameters: int) -> int | str:
    """Xinference's way to write a size: 4, or ``"1_7"``, ``"0_6"``, ``"0_135"``."""
    billions = parameters / 1e9
    if billions >= 0.95 and abs(billions - round(billions)) < 0.1:
        return round(billions)
    digits = f"{billions:.1f}" if billions >= 0.195 else f"{billions:.3f}"
    return digits.replace(".", "_")


def _of_kind(model: ModelStatus) -> dict[str, Any]:
    facts = model.facts
    assert facts is not None
    if facts.kind == "embedding":
        return {
            "dimensions": facts.dimensions,
            "language": [],
            "outputs": ["dense", *facts.token_heads],
            "prompts": facts.prompts,
            "default_prompt": facts.default_prompt,
        }
    if facts.kind == "rerank":
        return {"type": "normal", "language": [], "rerank_method": facts.rerank_method}
    asked = model.spec.size_in_billions
    return {
        "model_lang": [],
        "model_family": model_name(model),
        "model_size_in_billions": asked.replace(".", "_") if asked else size_in_billions(facts.parameters),
        "multimodal_projector": None,
        "revision": None,
        "strict_system_first": False,
    }
