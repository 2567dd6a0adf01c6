"""What chat completions and completions have in common: how tokens are chosen, and what the text must be."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema

from lodger.api import limits
from lodger.api.bodies import Body, Stops, at_most
from lodger.api.forms import form_of
from lodger.errors import MalformedBody, Unsupported
from lodger.tasks import Constraint, SamplingParams, StopRules

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")


def _biases(value: Any, info: ValidationInfo) -> dict[int, float]:
    """By token id, which JSON can write as a string only."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedBody(f"{info.field_name} must be an object of numbers by token id.", param=info.field_name)
    at_most(len(value), limits.BIASES, str(info.field_name))
    try:
        biases = {int(id): float(bias) for id, bias in value.items()}
    except (TypeError, ValueError):
        biases = {-1: 0.0}
    if any(not 0 <= id < 2**31 or not abs(bias) <= 100 for id, bias in biases.items()):
        raise MalformedBody(f"{info.field_name} must hold numbers of -100 to 100 by token id.", param=info.field_name)
    return biases


def _token_ids(value: Any, info: ValidationInfo) -> tuple[int, ...]:
    if not isinstance(value or [], list) or any(type(id) is not int or not 0 <= id < 2**31 for id in value or []):
        raise MalformedBody(f"{info.field_name} must be a list of token ids.", param=info.field_name)
    at_most(len(value or []), limits.STOPS, str(info.field_name))
    return tuple(value or ())


def _unlimited(value: Any) -> Any:
    """-1 is how clients of llama.cpp say that there is no limit."""
    return None if value == -1 else value


TokenCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_unlimited)]
Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema({"anyOf": [{"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}]}),
]
TokenIds = Annotated[
    tuple[int, ...],
    PlainValidator(_token_ids),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "integer", "minimum": 0}}, {"type": "null"}]}),
]


class StreamOptions(Body):
    include_usage: bool | None = None


class SamplingBody(Body):
    """Unset sampling means the model's own defaults."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=limits.CHOICES)
    max_tokens: TokenCount = None
    stop: Stops = ()
    stop_token_ids: TokenIds = ()
    ignore_eos: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logit_bias: Biases = {}
    response_format: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = Field(None, description="vLLM's: json, regex, choice, grammar or json_object")
    lora_name: Any = None

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),  # -1 means off, as 0 does
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            logit_bias=self.logit_bias,
        )

    def stopping(self, max_tokens: int | None) -> StopRules:
        return StopRules(
            max_tokens=max_tokens, stop=self.stop, stop_token_ids=self.stop_token_ids, ignore_eos=bool(self.ignore_eos)
        )

    def constraint(self) -> Constraint | None:
        return form_of(self.response_format, {name: getattr(self, name) for name in _GUIDED})

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def refuse_unserved(body: Body, *names: str) -> None:
    """
    Raises:
        Unsupported: a field that Lodger does not serve asks for more than nothing; a silent "no" would be a wrong
            answer.
    """
    for name in names:
        if getattr(body, name) not in (None, False, 0, "", [], {}):
            raise Unsupported(f"{name} is not served.", hint="Leave it out.", param=name)
