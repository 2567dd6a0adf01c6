"""`ChatTemplate`: a conversation to a prompt, by the model's own Jinja template.

The same text as transformers' `apply_chat_template(..., tokenize=False)`, without transformers. A template is code of
whoever made the model folder: it runs in Jinja's immutable sandbox and sees plain values only; the sizes of template
and prompt are bounded, its time is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from lodger.errors import EmptyInput, InvalidRequest, MalformedBody, Unsupported
from lodger.text.files import read_json, read_text
from lodger.text.sandbox import compile_template, sandbox

MAX_PROMPT = 2**26  # characters
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_RESERVED = frozenset({"messages", "tools", "documents", "chat_template"})
# What foreign code may raise on values that it did not expect, besides Jinja's own errors.
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_PROBE = "lodger"

Message = dict[str, Any]


class ChatTemplate:
    """One model's template, or several by name of which "tool_use" is taken when there are tools.

    Args:
        sources: name -> Jinja text; "default" is among them.
        tokens: special tokens by the name that templates use, such as bos_token.
        now: the clock behind `strftime_now`.

    Raises:
        ModelProblem: a template is no valid Jinja or is too long.
    """

    def __init__(
        self, sources: dict[str, str], tokens: dict[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        environment = sandbox(now)
        self._templates = {name: compile_template(environment, source) for name, source in sources.items()}
        self._sources = sources
        self._tokens = tokens
        self._wants_parts = self._shows_only([{"type": "text", "text": _PROBE}])

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a model folder, None if it has none. chat_template.jinja wins over tokenizer_config.json.

        Raises:
            ModelProblem: see the class; or a damaged tokenizer_config.json.
        """
        config = read_json(Path(folder), "tokenizer_config.json")
        sources = _sources(Path(folder), config)
        named = {**read_json(Path(folder), "special_tokens_map.json"), **config}
        tokens = {name: _token_text(named[name]) for name in _SPECIAL if named.get(name)}
        return cls(sources, tokens) if sources else None

    def source(self, tools: Sequence[dict[str, Any]]) -> str:
        """The Jinja text of the template that is taken for a conversation with these tools."""
        return self._sources[self._name(tools)]

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
        **args: Any,
    ) -> str:
        """The prompt. `args` are more names for the template, such as enable_thinking.

        Raises:
            EmptyInput: no messages.
            MalformedBody: a message is not one.
            Unsupported: a part of a message is not text.
            InvalidRequest: the template refuses the conversation, with its own words; or the prompt is too long.
        """
        if not messages:
            raise EmptyInput("messages is empty: there is nothing to answer.", param="messages")
        if wrong := sorted(_RESERVED & args.keys()):
            raise InvalidRequest(f"chat template argument {wrong[0]!r} cannot be set this way.", param=wrong[0])
        conversation = [_plain(message, place) for place, message in enumerate(messages)]
        if self._wants_parts:
            conversation = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in conversation]
        names = {**self._tokens, "add_generation_prompt": add_generation_prompt, **args}
        return self._write(self._templates[self._name(tools)], conversation, tools=list(tools) or None, **names)

    def _name(self, tools: Sequence[dict[str, Any]]) -> str:
        return "tool_use" if tools and "tool_use" in self._templates else "default"

    def _write(self, template: jinja2.Template, messages: list[Message], **names: Any) -> str:
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(messages=messages, documents=None, **names):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_PROMPT:
                    raise InvalidRequest(f"the chat template writes more than {MAX_PROMPT} characters.")
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the model's chat template says: {_line(error)}", param="messages") from error
        except _TEMPLATE_ERRORS as error:
            words = f"the model's chat template cannot write this conversation: {_line(error)}"
            raise InvalidRequest(words, param="messages") from error
        return "".join(pieces)

    def _shows_only(self, content: Any) -> bool:
        """The template prints a text given as this content, but not one given as a plain string."""
        return not self._shows(_PROBE) and self._shows(content)

    def _shows(self, content: Any) -> bool:
        names = {**self._tokens, "add_generation_prompt": True}
        try:
            text = self._write(self._templates["default"], [{"role": "user", "content": content}], tools=None, **names)
        except InvalidRequest:
            return False
        return _PROBE in text


def _sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name, from files of their own if there are any, else from tokenizer_config.json."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    found = {name: read_text(path.parent, path.name) for name, path in files.items()}
    listed = config.get("chat_template")
    if not found and isinstance(listed, str):
        found = {"default": listed}
    elif not found and isinstance(listed, list):
        found = {entry["name"]: entry["template"] for entry in listed}
    return {"default": next(iter(found.values())), **found} if found else {}


def _plain(message: Any, place: int) -> Message:
    """The message with its content as one string, and without keys of no value: templates print "None" for them."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise MalformedBody(f"messages.{place} must be an object with a role.", param="messages")
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        content = "\n".join(_part(part, place) for part in content)
    elif not isinstance(content, str | None):
        raise MalformedBody(f"messages.{place}.content must be a string or a list of parts.", param="messages")
    return {**{key: value for key, value in message.items() if value is not None}, "content": content or ""}


def _part(part: Any, place: int) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind != "text" and isinstance(kind, str):
        raise Unsupported(f"messages.{place} has a part of type {kind[:50]!r}; Lodger reads text.", param="messages")
    if kind is None or not isinstance(part.get("text"), str):
        raise MalformedBody(f"messages.{place}.content holds a part without text.", param="messages")
    return str(part["text"])


def _line(error: Exception) -> str:
    """What a template said, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _token_text(token: Any) -> str:
    """A special token as tokenizer_config.json has it: a string, or an object with its content."""
    return str(token["content"] if isinstance(token, dict) else token)
