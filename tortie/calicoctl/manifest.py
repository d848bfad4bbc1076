"""Files, directories and standard input into the resources they describe."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tortie.calicoctl import documents
from tortie.calicoctl.errors import CommandError, InvalidFile
from tortie.calicoctl.shape import shaped
from tortie.core.errors import ValidationError
from tortie.datastore import codec
from tortie.datastore.kinds import KINDS
from tortie.datastore.types.meta import API_VERSION, Resource

_EXTENSIONS = {".yaml", ".yml", ".json"}
_UNSTORED = {"BlockAffinity", "LiveMigration"}  # kinds that calicoctl does not manage
_KUBERNETES_LIST = ("List", "v1")  # of any kinds, as kubectl and `convert` print it
_LIST_FIELDS = {"kind", "apiVersion", "metadata", "items"}


@dataclass(frozen=True, slots=True)
class Source:
    """`recursive` also takes the directories below; `skip_empty` accepts finding nothing."""

    path: str
    stdin: BinaryIO
    recursive: bool = False
    skip_empty: bool = False


def read(source: Source) -> list[Resource]:
    """All resources of the source, in order; everything is read before anything is returned.

    Raises InvalidFile, and CommandError when there is nothing and that is not accepted.
    """
    if source.path != "-" and os.path.isdir(source.path):
        files = list(_files(source.path, source.recursive))
    else:
        files = [source.path]
    resources: list[Resource] = []
    for path in files:
        found = _resources(_bytes(path, source.stdin))
        if not found and not source.skip_empty:
            raise CommandError(f"no resources specified in file {path}")
        resources += found
    if not resources and not source.skip_empty:
        raise CommandError(f"no resources specified in directory {source.path}")
    return resources


def _files(directory: str, recursive: bool) -> Iterator[str]:
    """Manifests in lexical order, files and directories mixed."""
    try:
        names = sorted(os.listdir(directory), key=os.fsencode)
    except OSError as err:
        raise CommandError(f"open {directory}: {reason(err)}") from err
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            if recursive:
                yield from _files(path, recursive)
        elif os.path.splitext(name)[1].lower() in _EXTENSIONS:
            yield path


def _bytes(path: str, stdin: BinaryIO) -> bytes:
    try:
        return content(path, stdin)
    except OSError as err:
        raise InvalidFile(f"open {path}: {reason(err)}") from err


def content(path: str, stdin: BinaryIO) -> bytes:
    """A file's bytes, or standard input's for `-`. Raises OSError."""
    if path == "-":
        return stdin.read()
    with open(path, "rb") as source:
        return source.read()


def reason(err: OSError) -> str:
    """As Go words it."""
    return (err.strerror or str(err)).lower()


def _resources(data: bytes) -> list[Resource]:
    resources: list[Resource] = []
    try:
        for document in documents.split(data):
            resources += from_document(documents.parse(document))
    except (CommandError, ValidationError) as err:
        raise InvalidFile(err) from err
    return resources


def from_document(document: Any) -> list[Resource]:
    """The resources of one document: an object, a list kind, or an array of these.

    Raises CommandError, or ValidationError naming the field whose value has the wrong type.
    """
    if document is None:
        return []
    if isinstance(document, list):
        return [resource for item in document for resource in from_document(item)]
    if not isinstance(document, dict):
        raise CommandError("a document must be a resource or a list of resources")
    kind, version = document.get("kind"), document.get("apiVersion", "")
    if not isinstance(kind, str) or not kind:
        raise CommandError("Object 'Kind' is missing in a document")
    listed = kind.removesuffix("List")
    if (kind, version) == _KUBERNETES_LIST and isinstance(document.get("items"), list):
        return [resource for item in document["items"] for resource in from_document(item)]
    if version == API_VERSION and listed != kind and _is_managed(listed):
        return _from_list(listed, document)
    if version != API_VERSION or not _is_managed(kind):
        raise CommandError(f"unknown resource type ({kind}) and/or version ({version})")
    row = KINDS[kind].type
    return [codec.from_plain(row, {**shaped(row, document), "kind": kind})]


def _is_managed(kind: str) -> bool:
    return kind in KINDS and kind not in _UNSTORED


def _from_list(kind: str, document: dict[str, Any]) -> list[Resource]:
    for name in document.keys() - _LIST_FIELDS:
        raise CommandError(f'error unmarshaling JSON: while decoding JSON: json: unknown field "{name}"')
    items = document.get("items") or []
    if not isinstance(items, list):
        raise CommandError(f"{kind}List.items: expected an array")
    defaults = {"kind": kind, "apiVersion": API_VERSION}  # items of a list may leave both out
    return [
        resource
        for item in items
        for resource in from_document(defaults | item if isinstance(item, dict) else item)
    ]
