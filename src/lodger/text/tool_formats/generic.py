"""Any other model: an answer that is a JSON object, or a list of objects, with a tool's name and its arguments."""

from __future__ import annotations

from lodger.text.tool_formats.base import JsonFormat

FORMAT = JsonFormat(bare=True, wrap=("[", "]"), listed=True)
