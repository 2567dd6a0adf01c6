"""`answer_constraint`: what a chat model may write at all, where a task wants a call of a tool, or a form of its text.

A grammar holds from the first token on, but a model that thinks does so first, and what it thinks is its own affair.
"""

from __future__ import annotations

import json
import re

from lodger.tasks import ChatTask, Constraint
from lodger.text.reasoning import CLOSE, OPEN, after_thought, inside_thought, thinks
from lodger.text.schema_rules import text_rule
from lodger.text.tool_formats import tool_format

_SLASHES = re.compile(r"(\\.)|/|\n", re.DOTALL)
_OPTIONS = re.compile(r"^\s*%llguidance\s*\{[^}]*\}", re.MULTILINE)


def answer_constraint(template_source: str, prompt: str, task: ChatTask) -> Constraint | None:
    """What an answer to `prompt` must match; None if anything will do.

    "required" tools mean one call at least, each with arguments by its tool's schema. A task's own constraint is that
    of its text; with tools that need not be called it is met by a call as well.
    """
    called = bool(task.tools) and (task.tool_choice == "required" or task.constraint is not None)
    if not called and task.constraint is None:
        return None
    thought = _thought(template_source, prompt)
    if not called and not thought:
        return task.constraint
    rules, ways = [], []
    if called:
        rules.append(tool_format(template_source).grammar(task.tools, several=task.parallel_tool_calls))
        ways.append("calls")
    if task.constraint is not None and task.tool_choice != "required":
        rules.append(f"text: {_embedded(task.constraint)}")
        ways.append("text")
    start = " ".join(["start:", *thought[:1], f"({' | '.join(ways)})"])
    return Constraint(kind="lark", text="\n".join(["%llguidance {}", start, *thought[1:], *rules, ""]))


def _thought(template_source: str, prompt: str) -> tuple[str, ...]:
    """How a thought is part of an answer, and the rules of it; nothing where there can be none."""
    if not thinks(template_source) or after_thought(prompt):
        return ()
    inside = inside_thought(prompt)
    marked = ("" if inside else OPEN) + r"(.|\n)*" + CLOSE.replace("/", r"\/")
    part = "thought THOUGHT_SPACE" if inside else "(thought THOUGHT_SPACE)?"
    return part, f"thought[lazy]: /{marked}/", r"THOUGHT_SPACE: /\s*/"


def _embedded(constraint: Constraint) -> str:
    """A constraint as the right side of a rule in llguidance's Lark."""
    if constraint.kind == "json":
        schema = json.loads(constraint.text)
        return text_rule(schema) if isinstance(schema, dict) else f"%json {constraint.text}"
    if constraint.kind == "regex":
        body = _SLASHES.sub(lambda found: found[1] or {"/": r"\/", "\n": r"\n"}[found[0]], constraint.text)
        return f"/{body}/"
    return f"%lark {{\n{_OPTIONS.sub('', constraint.text)}\n}}"
