"""YAML with the line of every key, so that a mistake can be pointed at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lodger.errors import ConfigProblem

DEEPEST = 8  # an alias can put a list into itself

Place = tuple[str | int, ...]  # keys and indices from the top: ("models", "bge-m3", "memory")


class Document(NamedTuple):
    """What the file says, and where."""

    path: Path
    value: dict[str, Any]
    lines: dict[Place, int]

    def where(self, place: Place) -> str:
        """``'lodger.yaml:7'``: the line of `place`, or of the nearest thing around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path.name}:{self.lines.get(place, 1)}"


def read_document(path: Path) -> Document:
    """
    Raises:
        ConfigProblem: no such file, not YAML, or a key that is there twice.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(path.expanduser().read_bytes())
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        value = {} if node is None else _build(loader, node, (), lines, path)
    except OSError as error:
        raise ConfigProblem(
            f"{path} cannot be read: {error.strerror}.", hint="Name the file with --file, or write one."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigProblem(f"{path.name}{line}: {error.problem}.", hint="Mend the YAML there.") from None
    except yaml.YAMLError as error:
        raise ConfigProblem(f"{path.name} is not YAML: {error}.", hint="Save it as UTF-8 text.") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(value, dict):
        raise ConfigProblem(f"{path.name}:1: {type(value).__name__} instead of options.", hint="Begin with 'models:'.")
    return Document(path, value, lines)


def _build(loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> Any:
    """The value of `node`. Keys stay the text that was written: a uid may look like a number."""
    lines.setdefault(place, node.start_mark.line + 1)
    if len(place) > DEEPEST:
        raise ConfigProblem(f"{path.name}:{lines[place]}: nested too deep.", hint="No option is deeper than a model's.")
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*place, n), lines, path) for n, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        here = (*place, key)
        if key in found:
            raise ConfigProblem(
                f"{path.name}:{key_node.start_mark.line + 1}: {key!r} is there already, in line {lines[here]}.",
                hint="Give it another name, or take one away.",
            )
        lines[here] = key_node.start_mark.line + 1
        found[key] = _build(loader, value_node, here, lines, path)
    return found
