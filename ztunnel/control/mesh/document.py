"""A YAML text as cursors that know their line and path, so that every mistake can be named where it is.

Knows YAML and nothing of meshes. Reading never raises: what does not fit is noted in `Document.problems` and read as
None, so that one pass finds every mistake. PyYAML's nodes are used before it resolves them to Python values, because
values no longer know their line, and because YAML 1.1 makes a boolean of `on` and a number of `1:20`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import yaml
from yaml._yaml import CParser
from yaml.composer import Composer

T = TypeVar("T")

_CORE = "tag:yaml.org,2002:"
_NULL, _TEXT, _LIST, _MAPPING = (_CORE + kind for kind in ("null", "str", "seq", "map"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_DIGITS = 20
"""More than any number here has, and fewer than what Python refuses to read."""

_NESTING = "[{-?:"
"""Each level of nesting has at least one of these characters."""
_SHALLOW = 1000
"""Levels that the composer in C surely takes: it needs 0.3 KB of the stack for each."""


class _Resolver:
    """Of YAML's own tags only null matters here: what else a value is, its reader decides."""

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        if kind is yaml.ScalarNode:
            plain = isinstance(implicit, tuple) and implicit[0]
            return _NULL if plain and value in _NULLS else _TEXT
        return _LIST if kind is yaml.SequenceNode else _MAPPING

    def descend_resolver(self, parent: yaml.Node | None, index: object) -> None:
        """Nothing: tags do not depend on the place."""

    def ascend_resolver(self) -> None:
        """Nothing, likewise."""


class _Loader(_Resolver, Composer, CParser):
    """libyaml's parser, which is fast, under the composer written in Python: the one in C crashes the process on
    deep nesting where this one raises RecursionError."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)


class _ShallowLoader(_Resolver, CParser):
    """All in C, twice as fast; for texts that cannot nest deeply."""


class Document:
    """One text, its name for messages, and the problems found in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[tuple[int, str]] = []

    def note(self, line: int, path: str, why: str) -> None:
        where = f"{path}: " if path else ""
        self.problems.append((line, f"{self.name}:{line}: {where}{why}"))

    def report(self) -> tuple[str, ...]:
        """Every problem, in the order of the lines."""
        return tuple(text for _, text in sorted(self.problems, key=lambda problem: problem[0]))


class Cursor:
    """A place in the document: a node, and the path that led to it."""

    __slots__ = ("document", "node", "path")

    def __init__(self, document: Document, node: yaml.Node, path: str) -> None:
        self.document = document
        self.node = node
        self.path = path

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == _NULL)

    @property
    def own_tag(self) -> str:
        """The name of an application's tag (`Exact` of `!Exact`), else empty."""
        tag = str(self.node.tag)
        return tag[1:] if tag.startswith("!") else ""

    @property
    def is_empty(self) -> bool:
        return self.is_null or not self.node.value

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def refuse(self, why: str) -> None:
        self.document.note(self.line, self.path, why)

    def at(self, *keys: str) -> Cursor:
        """What the keys lead to, as far as they lead; for naming the place of a problem found later."""
        cursor = self
        for key in keys:
            if not isinstance(cursor.node, yaml.MappingNode):
                break
            found = [value for name, value in cursor.node.value if name.value == key]
            if not found:
                break
            cursor = Cursor(self.document, found[0], f"{cursor.path}.{key}")
        return cursor

    def entries(self) -> list[tuple[str, Cursor]]:
        """Keys and values of a mapping; null is an empty one. A key that comes twice is refused."""
        if self.is_null:
            return []
        if not isinstance(self.node, yaml.MappingNode) or self.own_tag:
            self.refuse(f"must be a mapping, not {self._kind()}")
            return []
        found: dict[str, Cursor] = {}
        for key_node, value_node in self.node.value:
            key = Cursor(self.document, key_node, self.path).text()
            if key is None:
                continue
            path = f"{self.path}.{key}" if self.path else key
            if key in found:
                self.document.note(key_node.start_mark.line + 1, path, f"is already in line {found[key].line}")
                continue
            found[key] = Cursor(self.document, value_node, path)
        return list(found.items())

    def items(self) -> Iterator[Cursor]:
        """Elements of a list; null is an empty one."""
        if self.is_null:
            return
        if not isinstance(self.node, yaml.SequenceNode) or self.own_tag:
            self.refuse(f"must be a list, not {self._kind()}")
            return
        for index, node in enumerate(self.node.value):
            yield Cursor(self.document, node, f"{self.path}[{index}]")

    def text(self) -> str | None:
        node = self.node
        if type(node) is yaml.ScalarNode and node.tag == _TEXT:  # almost always
            return str(node.value)
        if not isinstance(self.node, yaml.ScalarNode) or self.own_tag or self.is_null:
            self.refuse(f"must be text, not {self._kind()}")
            return None
        return str(self.node.value)

    def tagged_text(self) -> str | None:
        """The text behind an application's tag: `x` of `!Exact x`."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.refuse(f"must be text, not {self._kind()}")
            return None
        return str(self.node.value)

    def integer(self, low: int, high: int) -> int | None:
        text = self._scalar()
        if text is None or not _INTEGER.fullmatch(text):
            self.refuse(f"must be a whole number, not {self._kind()}")
            return None
        if len(text) > _DIGITS or not low <= int(text) <= high:
            shown = text if len(text) <= _DIGITS else f"a number of {len(text)} digits"
            self.refuse(f"must be between {low} and {high}, not {shown}")
            return None
        return int(text)

    def boolean(self) -> bool | None:
        text = self._scalar()
        if text not in ("true", "false"):
            self.refuse(f"must be true or false, not {self._kind()}")
            return None
        return text == "true"

    def parsed(self, parse: Callable[[str], T]) -> T | None:
        """Text put through `parse`, whose ValueError becomes the refusal."""
        text = self.text()
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.refuse(str(error))
            return None

    def _scalar(self) -> str | None:
        """The text of a plain (unquoted) scalar."""
        node = self.node
        if isinstance(node, yaml.ScalarNode) and not node.style and not self.own_tag:
            return str(node.value)
        return None

    def _kind(self) -> str:
        if self.own_tag:
            return f"a value with the tag !{self.own_tag}"
        if self.is_null:
            return "empty"
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value)
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"


def read(text: str, name: str) -> tuple[Document, Cursor | None]:
    """The root of `text`; None when it is empty, or no YAML (then the document has the problem)."""
    document = Document(name)
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.note(mark.line + 1 if mark else 1, "", f"not YAML: {error.problem or error.context}")
        return document, None
    except yaml.YAMLError as error:
        document.note(1, "", f"not YAML: {' '.join(str(error).split())}")
        return document, None
    except UnicodeEncodeError:
        document.note(1, "", "not YAML: a character that is no Unicode text")
        return document, None
    except RecursionError:
        document.note(1, "", "not a mesh: nested too deeply")
        return document, None
    return document, None if node is None else Cursor(document, node, "")


def read_items(text: str) -> list[Cursor]:
    """The items of a text that is one sequence; none when it is anything else, or no YAML."""
    shallow = sum(map(text.count, _NESTING)) <= _SHALLOW
    try:
        root = (_ShallowLoader if shallow else _Loader)(text).get_single_node()
    except (yaml.YAMLError, UnicodeEncodeError, RecursionError):
        return []
    if not isinstance(root, yaml.SequenceNode):
        return []
    document = Document("")
    return [Cursor(document, node, "") for node in root.value]
