"""Strict YAML: plain data only, no aliases, no duplicate keys, every error with the file's name and the line."""

import math
from pathlib import Path
from typing import Any

import yaml

from models.errors import SpecError


class _StrictLoader(yaml.SafeLoader):
    """Refuses aliases (a small file can expand to gigabytes) and duplicate keys (the last would win silently)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "an alias is not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} occurs twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_timestamp_as_text(self, node: yaml.ScalarNode) -> str:
        """A date stays the text that it is: JSON has none, and specs travel as JSON."""
        return str(node.value)


_StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", _StrictLoader.construct_timestamp_as_text)


def parse_document(text: str | bytes, file: Path) -> dict[str, Any]:
    """The mapping that ``text``, read from ``file``, holds: str, int, float, bool, None, list and dict alone.

    Raises:
        SpecError: no YAML, or YAML that is not such a mapping.
    """
    try:
        # A subclass of SafeLoader: it constructs plain data and nothing else.
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        raise SpecError(file, line or "document", "plain YAML", error.problem) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(file, "document", "plain YAML", str(error)) from error
    if not isinstance(document, dict):
        raise SpecError(file, "document", "a mapping", document)
    _require_plain(document, file, "")
    return document


def read_document(file: Path) -> dict[str, Any]:
    """The mapping that ``file`` holds; see ``parse_document``.

    Raises:
        SpecError: a file that cannot be read or does not hold a mapping of plain data.
    """
    return parse_document(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """The bytes of ``file``.

    Raises:
        SpecError: a file that is missing or cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise SpecError(file, "file", "to exist") from error
    except OSError as error:
        raise SpecError(file, "file", "to be readable", error.strerror) from error


def _require_plain(value: object, file: Path, field: str) -> None:
    if isinstance(value, dict):
        for key, element in value.items():
            _require_plain(element, file, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for index, element in enumerate(value):
            _require_plain(element, file, f"{field}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(file, field, "a finite number", value)
    elif not isinstance(value, str | int | None):
        raise SpecError(file, field, "text, a number, true, false, a list or a mapping", value)
