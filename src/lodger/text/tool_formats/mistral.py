"""Mistral: `[TOOL_CALLS]` and a list of calls, or since 2025 a name and its arguments after each such mark."""

from __future__ import annotations

from lodger.text.tool_formats.base import JsonFormat

FORMAT = JsonFormat(
    opens=("[TOOL_CALLS]",),
    special=("[TOOL_CALLS]", "[ARGS]"),
    bare=True,  # the mark is a special token, which the text of a constrained answer does not hold
    named=True,
    wrap=("[", "]"),
    listed=True,
)
