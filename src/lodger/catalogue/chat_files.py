"""What a folder says about chatting: its template, where an answer ends, and how tokens are sampled unless asked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lodger.catalogue.config_files import Fields, is_text, read_fields, read_text
from lodger.errors import ModelProblem

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_TOOLS = re.compile(r"\btools\b")
_MORE = "additional_chat_templates"


def read_chat_facts(folder: Path, config: Fields, tokenizer: Fields) -> dict[str, Any]:
    """
    Raises:
        ModelProblem: a file is damaged.
    """
    generation = read_fields(folder, "generation_config.json")
    read_fields(folder, "special_tokens_map.json")  # templates write its tokens
    templates = _templates(folder, tokenizer)
    return {
        "chat_template": bool(templates),
        "tools": any(_TOOLS.search(text) for text in templates),
        "eos_token_ids": generation.token_ids("eos_token_id") or config.token_ids("eos_token_id"),
        "generation": {key: generation.number(key) for key in _SAMPLING if key in generation},
    }


def _templates(folder: Path, tokenizer: Fields) -> list[str]:
    """All of them; files of their own win over tokenizer_config.json, as in transformers."""
    names = ["chat_template.jinja"]
    if os.path.isdir(folder / _MORE):
        try:
            more = sorted(os.listdir(folder / _MORE))
        except OSError as error:
            raise ModelProblem(f"{_MORE} cannot be read: {error.strerror}.") from None
        names += [f"{_MORE}/{name}" for name in more if name.endswith(".jinja") and is_text(name)]
    found = [text for text in (read_text(folder, name) for name in names) if text is not None]
    return found or _listed(tokenizer)


def _listed(tokenizer: Fields) -> list[str]:
    value = tokenizer.values.get("chat_template")
    if not isinstance(value, list):
        return [value] if isinstance(value, str) and value else []
    entries = [entry if isinstance(entry, dict) else {} for entry in value]
    if not all(isinstance(entry.get(key), str) for entry in entries for key in ("name", "template")):
        raise tokenizer.problem("chat_template", "a text, or a list of texts with names")
    return [entry["template"] for entry in entries]
