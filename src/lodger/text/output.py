"""`OutputParser`: what a chat model writes, as thought, text and calls of tools.

Models say these with marks in their text. Which ones is told by their chat template: it writes earlier thoughts and
calls of the conversation as the model is to write new ones.
"""

from __future__ import annotations

from typing import NamedTuple

from lodger.tasks import ChatTask, ToolCall
from lodger.text.reasoning import CLOSE, OPEN, ThoughtSplitter, inside_thought, thinks
from lodger.text.tool_calls import CallFinder
from lodger.text.tool_formats import tool_format


class Piece(NamedTuple):
    """What can be shown of an answer now."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class OutputParser:
    """How the answer is cut into pieces changes nothing in what comes out in all. One for each choice.

    Attributes:
        special: tokens that must be in the text even where the tokenizer takes them for no part of it.
    """

    def __init__(
        self, thought: ThoughtSplitter | None, calls: CallFinder | None, special: tuple[str, ...] = ()
    ) -> None:
        self._thought, self._calls = thought, calls
        self.special = special

    def push(self, text: str) -> Piece:
        reasoning = ""
        if self._thought is not None:
            reasoning, text = self._thought.push(text)
        if self._calls is None or not text:
            return Piece(text, reasoning)
        text, calls = self._calls.push(text)
        return Piece(text, reasoning, calls)

    def flush(self) -> Piece:
        """The answer has ended: what was held back."""
        reasoning, text = self._thought.flush() if self._thought is not None else ("", "")
        if self._calls is None:
            return Piece(text, reasoning)
        before, first = self._calls.push(text)
        after, last = self._calls.flush()
        return Piece(before + after, reasoning, first + last)


def output_parser(template_source: str, prompt: str, task: ChatTask) -> OutputParser | None:
    """The parser of one answer to `prompt`; None if all of it is plain text.

    A caller that wants thoughts within the text gets them there, and calls after them are found all the same.
    """
    form = tool_format(template_source)
    calls = CallFinder(form, task.tools, several=task.parallel_tool_calls) if task.tools else None
    thought = None
    if task.separate_reasoning and thinks(template_source):
        thought = ThoughtSplitter(inside=inside_thought(prompt))
    if thought is None and calls is None:
        return None
    marks = (OPEN, CLOSE) if thought is not None else ()
    return OutputParser(thought, calls, marks + form.special if calls is not None else marks)
