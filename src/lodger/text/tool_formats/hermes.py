"""Qwen2.5, Qwen3 and Hermes: a block `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` for each call."""

from __future__ import annotations

from lodger.text.tool_formats.base import JsonFormat

FORMAT = JsonFormat(
    opens=("<tool_call>",),
    special=("<tool_call>", "</tool_call>"),
    bare=True,  # small models forget the marks
    closing="</tool_call>",
    wrap=("<tool_call>\n", "\n</tool_call>"),
    separator="\n",
)
