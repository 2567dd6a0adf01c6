"""Xinference's launch body as a `ModelSpec`, and what is said of options that mean nothing here.

Xinference passes any unknown key on to its engine; here it is answered by a note, which the answer, the description and
`lodger list` repeat. An option that would change answers if it were obeyed (a LoRA) is refused instead.
"""

from __future__ import annotations

import secrets
from collections.abc import Container
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from lodger.api import limits
from lodger.api.bodies import Body
from lodger.errors import ConfigProblem, InvalidRequest, MalformedBody, Unsupported
from lodger.spec import ModelSpec, check_uid
from lodger.tasks import Kind
from lodger.units import parse_size

KINDS: dict[str, Kind] = {"LLM": "chat", "embedding": "embedding", "rerank": "rerank"}
_DTYPES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
_INT8 = ("int8", "8-bit", "8bit", "8")  # as Xinference spells it for its formats
_VENV = "Lodger makes no virtual environments and installs nothing at launch."
_NOTES = {
    "trust_remote_code": "code from model folders is never run.",
    "enable_virtual_env": _VENV,
    "virtual_env_packages": _VENV,
    "virtual_env_find_links": _VENV,
    "envs": "a request cannot set environment variables of the process.",
    "n_gpu": "one GPU serves each replica of a model.",
    "n_worker": "one worker serves all models of a device.",
    "worker_ip": "models run on this machine.",
    "replica_config": "all replicas are alike.",
    "request_limits": "requests wait in a queue.",
    "quantization": "weights are served as the folder has them, or as int8.",
    "quantization_config": "weights are served as the folder has them.",
    "model_format": "what the folder holds is served.",
    "download_hub": "launching does not download.",
    "enable_thinking": "each chat request says whether it wants it.",
}
# Values that ask for nothing: the defaults of Xinference's clients, and what is true here anyway.
_SILENT: dict[str, Container[Any]] = {
    "n_gpu": ("auto", 1),
    "n_worker": (1,),
    "quantization": ("none", *_INT8),
    "model_format": ("pytorch",),
    "trust_remote_code": (True, False),
    "enable_virtual_env": (False,),
    "enable_thinking": (False,),
}


class LaunchRequest(Body):
    """POST /v1/models. Any other key is an engine's option to Xinference, and gets a note here."""

    model_config = ConfigDict(extra="allow")

    model_name: str | None = None
    model_uid: str | None = None
    model_type: str | None = None
    model_engine: str | None = None
    model_path: str | None = None
    model_size_in_billions: int | float | str | None = None
    context_length: int | None = Field(None, ge=1)
    max_model_len: int | None = Field(None, ge=1)  # vLLM's name for it
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization: int | str | None = Field(
        None, description="int8 makes a decoder's weights one byte each while loading"
    )
    memory: int | str | None = Field(None, description="The most the model may hold, such as 6GiB")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="Of the whole device, as vLLM means it")
    replica: int | None = Field(None, ge=1, description="Copies of the model, each on a GPU of its own")
    gpu_idx: int | list[int] | str | None = Field(None, description="GPUs that it may go on: 0, [0, 1] or '0,1'")
    peft_model_config: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _spelled_alike(cls, value: Any) -> Any:
        """`xinference launch --gpu-memory-utilization 0.2` sends the key with hyphens."""
        return {key.replace("-", "_"): item for key, item in value.items()} if isinstance(value, dict) else value

    def spec(self, taken: Container[str]) -> ModelSpec:
        """
        Args:
            taken: uids in use, to make a new one where none is asked for.

        Raises:
            InvalidRequest: nothing to launch, a uid or value that cannot be.
            Unsupported: a kind of model or an adapter that Lodger does not serve.
        """
        if not (self.model_name or self.model_path):
            raise InvalidRequest("Invalid input. Please specify the `model_name` field.", param="model_name")
        if self.peft_model_config and self.peft_model_config.get("lora_list"):
            raise Unsupported("LoRA adapters are not served.", param="peft_model_config")
        size = self.model_size_in_billions
        return ModelSpec(
            uid=check_uid(self.model_uid or _new_uid(self.model_name or self.model_path or "", taken)),
            name=self.model_name or None,
            path=self.model_path or None,
            kind=self._kind(),
            size_in_billions=None if size is None else str(size).replace("_", "."),
            context_length=self.context_length or self.max_model_len,
            memory=self._memory(),
            memory_fraction=self.gpu_memory_utilization,
            dtype=self._dtype(),
            quantization="int8" if self._quantized() in _INT8 else None,
            engine=self.model_engine or None,
            gpu=self._gpus(),
            replicas=self.replica or 1,
            notes=self._notes(),
        )

    def _kind(self) -> Kind | None:
        if self.model_type is not None and self.model_type not in KINDS:
            raise Unsupported(
                f"Unsupported model type: {self.model_type[:50]}.",
                hint="Lodger serves LLM, embedding and rerank.",
                param="model_type",
            )
        return KINDS.get(self.model_type or "")

    def _memory(self) -> int | None:
        try:
            return None if self.memory is None else parse_size(self.memory)
        except ConfigProblem as error:
            raise MalformedBody(error.message, hint=error.hint, param="memory") from None

    def _gpus(self) -> tuple[int, ...]:
        asked = self.gpu_idx
        words = asked.split(",") if isinstance(asked, str) else asked if isinstance(asked, list) else [asked]
        numbers = [str(word).strip() for word in words if word not in (None, "", "auto")]
        if wrong := [number for number in numbers if not number.isdecimal()]:
            raise MalformedBody(f"{wrong[0][:50]!r} is no GPU's number.", hint="Write 0 or [0, 1].", param="gpu_idx")
        return tuple(sorted(set(map(int, numbers))))

    def _dtype(self) -> str | None:
        asked = self.dtype or self.torch_dtype
        return None if asked in (None, "auto") else _DTYPES.get(asked, asked)

    def _quantized(self) -> str | None:
        return None if self.quantization is None else str(self.quantization).lower()

    def _notes(self) -> tuple[str, ...]:
        given = {"quantization": self._quantized(), **(self.model_extra or {})}
        noted = [key for key, value in given.items() if value is not None and value not in _SILENT.get(key, ())]
        return tuple(f"{key[:100]} has no effect: {_NOTES.get(key, _UNKNOWN)}" for key in noted[: limits.NOTES])


_UNKNOWN = "Lodger has no such option."


def _new_uid(name: str, taken: Container[str]) -> str:
    """The name itself, as Xinference does, or with eight random characters where it is taken."""
    base = name.rstrip("/").rsplit("/", 1)[-1]
    return base if base not in taken else f"{base}-{secrets.token_hex(4)}"
