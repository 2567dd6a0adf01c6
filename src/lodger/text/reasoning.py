"""`ThoughtSplitter`: what a model thinks, between its marks, apart from what it answers."""

from __future__ import annotations

from lodger.text.marks import sure

OPEN, CLOSE = "<think>", "</think>"


def thinks(template_source: str) -> bool:
    """Whether the model of this chat template marks its thoughts."""
    return CLOSE in template_source


def inside_thought(prompt: str) -> bool:
    """Whether the prompt has opened a thought, so that the answer begins within it."""
    return prompt.rstrip().endswith(OPEN)


def after_thought(prompt: str) -> bool:
    """Whether the prompt has ended a thought, as templates write it for `enable_thinking` false."""
    return prompt.rstrip().endswith(CLOSE)


class ThoughtSplitter:
    """A thought stands at the beginning of an answer or nowhere. White space around it belongs to nothing.

    Args:
        inside: the prompt has opened it.
    """

    def __init__(self, *, inside: bool) -> None:
        self._held = ""
        self._step = self._think if inside else self._look
        self._begun = False  # the thought has shown a character

    def push(self, text: str) -> tuple[str, str]:
        """The thought and the text that can be shown now."""
        self._held += text
        return self._step()

    def flush(self) -> tuple[str, str]:
        """The answer has ended: what was held back."""
        held, self._held = self._held, ""
        if self._step == self._think:
            return held.rstrip() if self._begun else held.strip(), ""
        return "", held if self._step == self._look else ""

    def _look(self) -> tuple[str, str]:
        """Is there a thought at all?"""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held, self._step = start[len(OPEN) :], self._think
            return self._think()
        if OPEN.startswith(start):
            return "", ""
        self._step = self._pass
        return self._pass()

    def _think(self) -> tuple[str, str]:
        thought, closed, rest = self._held.partition(CLOSE)
        if not self._begun:
            thought = thought.lstrip()
        length = len(thought.rstrip()) if closed else sure(thought, (CLOSE,))
        self._held = rest if closed else thought[length:]
        self._begun = self._begun or length > 0
        if not closed:
            return thought[:length], ""
        self._step = self._skip
        return thought[:length], self._skip()[1]

    def _skip(self) -> tuple[str, str]:
        """White space between a thought and the text."""
        self._held = self._held.lstrip()
        if not self._held:
            return "", ""
        self._step = self._pass
        return self._pass()

    def _pass(self) -> tuple[str, str]:
        text, self._held = self._held, ""
        return "", text
