"""Llama 3.x: `{"name": ..., "parameters": {...}}` as the answer, after `<|python_tag|>` or bare; several after ";"."""

from __future__ import annotations

from lodger.text.tool_formats.base import JsonFormat

_TAG = "<|python_tag|>"

FORMAT = JsonFormat(
    opens=(_TAG,), special=(_TAG,), bare=True, between=" \n\r\t;", separator="; ", arguments="parameters"
)
