"""How models write calls of tools. One file for each format, with a `FORMAT`, and one row here."""

from __future__ import annotations

from lodger.text.tool_formats import generic, hermes, llama, mistral, qwen_coder
from lodger.text.tool_formats.base import ToolFormat

# The first whose word a chat template holds is the one that the template asks its model for.
TABLE: tuple[tuple[str, ToolFormat], ...] = (
    ("<function=", qwen_coder.FORMAT),
    ("<arg_key>", generic.FORMAT),  # GLM's <tool_call> holds no JSON
    ("<tool_call>", hermes.FORMAT),
    ("[TOOL_CALLS]", mistral.FORMAT),
    ("<|python_tag|>", llama.FORMAT),
    ('"parameters"', llama.FORMAT),
)


def tool_format(template_source: str) -> ToolFormat:
    """The format that the model of this chat template writes."""
    return next((made for word, made in TABLE if word in template_source), generic.FORMAT)
