"""What `get -o` prints: tables, YAML, JSON and templates of what was read.

A result is one resource or a whole list; several results are printed as several tables, or as one array.
Values may come from anyone who can write to the datastore: nothing steers a terminal from here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, structs

from tortie.calicoctl import kinds
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.listing import Listing
from tortie.core.tables import tabbed
from tortie.datastore import codec
from tortie.datastore.types.meta import API_VERSION, Resource

_STEERING = re.compile("[\x7f-\x9f]")  # control characters that JSON does not escape by itself


Result = Resource | Listing


@dataclass(frozen=True, slots=True)
class Format:
    """How to print: `style` is table, yaml, json or template.

    `columns` None: the kind's own, wide or not. `template` is a Go template's text.
    """

    style: str
    wide: bool = False
    columns: tuple[str, ...] | None = None
    template: str = ""


def parse_format(text: str, read_file: Callable[[str], str]) -> Format:
    """The format that -o asks for. Raises CommandError."""
    key, _, value = text.partition("=")
    match text:
        case "ps" | "wide":
            return Format("table", wide=text == "wide")
        case "yaml" | "yml":
            return Format("yaml")
        case "json":
            return Format("json")
    wanted = {"go-template": "a template", "go-template-file": "a template file"}
    if key in (*wanted, "custom-columns") and not value:
        raise CommandError(f"need to specify {wanted.get(key, 'at least one column')}")
    match key:
        case "go-template":
            return Format("template", template=value)
        case "go-template-file":
            return Format("template", template=read_file(value))
        case "custom-columns":
            return Format("table", columns=tuple(value.split(",")))
    raise CommandError(f"unrecognized output format '{text}'")


def needs_cluster_as(form: Format, results: Sequence[Result]) -> bool:
    """Whether printing needs the cluster's AS number."""
    if form.style == "template":
        return "config" in form.template
    if form.style != "table" or not any(_kind(result).name == "Node" for result in results):
        return False
    return "ASN" in form.columns if form.columns is not None else form.wide


def render(form: Format, results: Sequence[Result], *, with_namespace: bool, cluster_as: str) -> str:
    """The whole text. Raises CommandError for a wrong heading or template."""
    if form.style == "table":
        return "".join(_table(form, result, with_namespace, cluster_as) for result in results)
    if form.style == "yaml":
        from tortie.calicoctl import goyaml

        return goyaml.dump(_single_or_all([plain(result) for result in results]))
    if form.style == "json":
        return _json(results)
    from tortie.calicoctl import gotemplate

    return gotemplate.render(form.template, list(results), cluster_as)


def _kind(result: Result) -> kinds.Managed:
    return kinds.MANAGED[result.kind] if isinstance(result, Listing) else kinds.of(result)


def _table(form: Format, result: Result, with_namespace: bool, cluster_as: str) -> str:
    managed = _kind(result)
    headings = form.columns if form.columns is not None else managed.wide if form.wide else managed.columns
    if with_namespace and managed.namespaced and form.columns is None:
        headings = ("NAMESPACE", *headings)
    for heading in headings:
        if heading not in managed.cells:
            raise CommandError(f"unknown heading {heading}, valid values are: {', '.join(managed.cells)}")
    cells = [managed.cells[heading] for heading in headings]
    items = result.items if isinstance(result, Listing) else (result,)
    rows = [[_safe(cell(item), cluster_as) for cell in cells] for item in items]
    return tabbed([headings, *rows]) + "\n"


def _safe(text: str, cluster_as: str) -> str:
    return f"({cluster_as})" if text is kinds.CLUSTER_AS else printable(text)


def _single_or_all(values: list[Any]) -> Any:
    """One result stands alone, none is null, several are an array."""
    return values[0] if len(values) == 1 else values or None


def plain(result: Result) -> Any:
    """What YAML shows of it."""
    if not isinstance(result, Listing):
        return _numbers(codec.to_plain(_known(result)))
    items = [plain(item) for item in result.items]
    return {
        "kind": f"{result.kind}List",
        "apiVersion": API_VERSION,
        "metadata": {"resourceVersion": result.revision} if result.revision else {},
        "items": items,
    }


def _known(resource: Resource) -> Resource:
    """Without fields that the type does not have: reading them back would fail, as they do in Calico."""
    return structs.replace(resource, origin=UNSET)


def _numbers(value: Any) -> Any:
    """Whole floats as integers, as Go's JSON writes them."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def _json(results: Sequence[Result]) -> str:
    parts = [_json_bytes(result) for result in results]
    data = parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]" if parts else b"null"
    text = msgspec.json.format(data, indent=2).decode()
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _json_bytes(result: Result) -> bytes:
    if not isinstance(result, Listing):
        return codec.encode(_known(result))
    head = plain(Listing(result.kind, (), result.revision))
    del head["items"]
    items = b",".join(_json_bytes(item) for item in result.items)
    return msgspec.json.encode(head)[:-1] + b',"items":[' + items + b"]}"
