"""YAML and JSON text into plain data, read as strictly as Calico does and without trusting the text.

Built from PyYAML's events, so that no object is ever constructed from a tag. Duplicate keys, self-referring
anchors, excessive aliasing and nesting, and oversized documents are refused. Errors are Go's, because
people search for them. Pure: text in, data out.
"""

from collections.abc import Iterator
from typing import Any

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gonumber import format_float
from tortie.calicoctl.goscalar import resolve

MAX_DOCUMENT = 10 * 1024 * 1024  # bytes, Calico's limit
_MAX_DEPTH = 100  # Go's is 10,000; no resource has 20 levels, and recursion here must stay shallow
_MAX_ALIASED = 100_000  # values reached through aliases: stops a few lines from standing for billions
_SEPARATOR = "\n---"
_STR_TAGS = {"tag:yaml.org,2002:str", "!"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "timestamp")}
_CONTAINER_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "!"}


def split(data: bytes) -> Iterator[bytes]:
    """The documents of a file; what stands on a `---` line after the dashes is dropped, as by Calico."""
    separator = _SEPARATOR.encode()
    while data:
        document, found, data = data.partition(separator)
        if len(document) > MAX_DOCUMENT:
            raise CommandError("bufio.Scanner: token too long")
        yield document
        if found:
            _, _, data = data.partition(b"\n")


def parse(document: bytes) -> Any:
    """One document as plain data: dict, list, str, int, float, bool, None. Raises CommandError."""
    import yaml  # 10 ms, for commands that read files only

    loader = getattr(yaml, "CLoader", yaml.Loader)  # libyaml where it is, ten times as fast
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _fail("invalid UTF-8 text") from None
    try:
        return _Builder(yaml.parse(text, Loader=loader)).document()
    except yaml.MarkedYAMLError as err:
        raise _fail(_where(err, yaml.scanner.ScannerError) + str(err.problem)) from None
    except yaml.YAMLError as err:  # a character that YAML does not allow
        raise _fail(str(err).partition("\n")[0]) from None


def _fail(problem: str) -> CommandError:
    return CommandError(f"error converting YAML to JSON: yaml: {problem}")


def _where(err: Any, scanner_error: type) -> str:
    """Go's `line N: `, with its way of counting: parser errors one line less, none on the first."""
    line = err.problem_mark.line if err.problem_mark else 0
    if line:
        return f"line {line + (1 if isinstance(err, scanner_error) else 0)}: "
    line = err.context_mark.line if err.context_mark else 0
    return f"line {line}: " if line else ""


class _Builder:
    """Composes one document's value from its events."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._anchors: dict[str, Any] = {}  # anchor -> its value, once complete
        self._sizes: dict[str, int] = {}  # anchor -> how many values it stands for
        self._open: set[str] = set()  # anchors whose value is being composed
        self._count = 0  # values composed, aliased ones as often as they are referred to
        self._aliased = 0
        self._duplicates: list[str] = []

    def document(self) -> Any:
        value: Any = None
        for event in self._events:
            name = type(event).__name__
            if name in ("ScalarEvent", "MappingStartEvent", "SequenceStartEvent", "AliasEvent"):
                value = self._value(event, 0)
            elif name == "DocumentEndEvent":
                break  # Go, too, reads the first document only
        if self._duplicates:
            raise _fail("unmarshal errors:\n" + "\n".join(self._duplicates))
        return value

    def _value(self, event: Any, depth: int) -> Any:
        name = type(event).__name__
        if name == "AliasEvent":
            return self._alias(event)
        if depth > _MAX_DEPTH:
            raise _fail(f"exceeded max depth of {_MAX_DEPTH}")
        before = self._count
        self._count += 1
        if event.anchor:
            self._open.add(event.anchor)
        if name == "ScalarEvent":
            value = _scalar(event)
        elif event.tag is not None and event.tag not in _CONTAINER_TAGS:
            raise _fail(f"line {event.start_mark.line + 1}: cannot decode a value tagged {event.tag}")
        elif name == "MappingStartEvent":
            value = self._mapping(depth)
        else:
            value = [self._value(item, depth + 1) for item in self._until("SequenceEndEvent")]
        if event.anchor:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = value
            self._sizes[event.anchor] = self._count - before
        return value

    def _until(self, end: str) -> Iterator[Any]:
        for event in self._events:
            if type(event).__name__ == end:
                return
            yield event

    def _alias(self, event: Any) -> Any:
        anchor = event.anchor
        if anchor in self._open:
            raise _fail(f"anchor '{anchor}' value contains itself")
        if anchor not in self._anchors:
            raise _fail(f"unknown anchor '{anchor}' referenced")
        self._aliased += self._sizes[anchor]
        self._count += self._sizes[anchor]
        if self._aliased > _MAX_ALIASED:
            raise _fail("document contains excessive aliasing")
        return self._anchors[anchor]

    def _mapping(self, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Any] = []
        for event in self._until("MappingEndEvent"):
            is_merge = type(event).__name__ == "ScalarEvent" and _is_merge(event)
            key = self._value(event, depth + 1)
            value = self._value(next(self._events), depth + 1)
            if is_merge:
                merged += value if isinstance(value, list) else [value]
                continue
            name = _key(key)
            if name in result:
                line = event.start_mark.line + 1
                self._duplicates.append(f"  line {line}: key {_quoted(key)} already set in map")
            result[name] = value
        for other in reversed(merged):
            if not isinstance(other, dict):
                raise _fail("map merge requires map or sequence of maps as the value")
            result = {**other, **result}
        return result


def _scalar(event: Any) -> Any:
    tag = event.tag
    if tag in _STR_TAGS or (tag is None and event.style):
        return event.value
    if tag is not None and tag not in _PLAIN_TAGS:
        raise _fail(f"line {event.start_mark.line + 1}: cannot decode a value tagged {tag}")
    value = resolve(event.value)
    return float(value) if tag and tag.endswith(":float") and isinstance(value, int) else value


def _key(key: Any) -> str:
    """JSON has text keys only; Go writes the others out."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return str(key)
    if isinstance(key, float):
        return format_float(key)
    raise CommandError(f"error converting YAML to JSON: unsupported map key: {str(key)[:40]}")


def _quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else _key(key)


def _is_merge(event: Any) -> bool:
    return event.value == "<<" and not event.style and event.tag is None
