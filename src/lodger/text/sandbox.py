"""The Jinja environment in which chat templates run."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lodger.errors import ModelProblem

MAX_TEMPLATE = 2**20  # characters


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only shows its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, through which a sandbox may be left."""

    def __init__(*args: Any, **names: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **names).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        Namespace.__setitem__(self, name, value)


def sandbox(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    environment.globals["dict"] = lambda *args, **names: dict(*args, **names)
    environment.globals["namespace"] = _Namespace
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def compile_template(environment: ImmutableSandboxedEnvironment, source: str) -> jinja2.Template:
    """
    Raises:
        ModelProblem: not valid Jinja, or longer than `MAX_TEMPLATE`.
    """
    if len(source) > MAX_TEMPLATE:
        raise ModelProblem(f"the chat template has {len(source)} characters; at most {MAX_TEMPLATE} are read.")
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelProblem(f"the chat template is not valid Jinja: {error.message} (line {error.lineno}).") from error
