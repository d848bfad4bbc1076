"""`convert`: resources of Calico's v1 API, and Kubernetes' NetworkPolicies, as v3 resources.

Calico had the command until 3.29. It needs no datastore, takes a file or standard input, and prints one
resource, or several as a List, which `apply` takes.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from tortie.calicoctl import documents, goyaml, manifest, output, v1convert
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError
from tortie.core.errors import TortieError
from tortie.datastore.types.meta import Resource

_V1 = "v1"
_KUBERNETES = "networking.k8s.io/v1"


def convert(call: Call) -> None:
    path, form = call.flags["filename"], call.flags["output"]
    if form not in ("yaml", "yml", "json"):
        raise CommandError(f"unrecognized output format '{form}'")
    if not path:
        raise CommandError("no file given: give one with -f, or - for standard input")
    found = [_converted(one) for one in _read(path, call)]
    if not found:
        raise CommandError(f"no resources specified in file {path}")
    if not call.flags["ignore-validation"]:
        _check(found)
    call.out(_shown(found, form))


def _read(path: str, call: Call) -> list[dict[str, Any]]:
    failed = "failed to create resources from file"
    try:
        data = manifest.content(path, call.stdin)
    except OSError as err:
        raise CommandError(f"{failed}: open {path}: {manifest.reason(err)}") from err
    try:
        return [one for part in documents.split(data) for one in _single(documents.parse(part))]
    except TortieError as err:
        raise CommandError(f"{failed}: {err}") from err


def _single(document: Any) -> Iterator[dict[str, Any]]:
    """Lists, of whatever kind, taken apart."""
    if document is None:
        return
    if isinstance(document, list):
        for one in document:
            yield from _single(one)
        return
    if not isinstance(document, dict):
        raise CommandError("a document must be a resource or a list of resources")
    kind, version = document.get("kind"), document.get("apiVersion", "")
    if not isinstance(kind, str) or not kind:
        raise CommandError("Object 'Kind' is missing in a document")
    if version not in (_V1, _KUBERNETES):
        raise CommandError(f"Unknown resource type ({kind}) and/or version ({version})")
    if kind.endswith("List") and isinstance(document.get("items"), list):
        implied = {"kind": kind.removesuffix("List"), "apiVersion": version}
        for item in document["items"]:
            yield from _single(implied | item if isinstance(item, dict) else item)
        return
    yield document


def _converted(document: dict[str, Any]) -> Resource:
    try:
        if document.get("apiVersion") == _KUBERNETES:
            return _from_kubernetes(document)
        (resource,) = manifest.from_document(v1convert.convert(document["kind"], document))
    except TortieError as err:
        raise CommandError(f"failed to convert resource: {err}") from err
    return resource


def _from_kubernetes(document: dict[str, Any]) -> Resource:
    # No other command converts policies.
    from tortie.datastore.kubernetes.networkpolicy import convert_network_policy

    kind = document["kind"]
    if kind.lower() != "networkpolicy":
        raise CommandError(f"conversion for the k8s resource type '{kind}' is not supported")
    done = convert_network_policy(document)
    if done.policy is None or done.error:
        raise CommandError(f"failed to convert k8s resource: {done.error}")
    return done.policy.with_metadata(uid="", resourceVersion="", creationTimestamp=None)


def _check(resources: list[Resource]) -> None:
    from tortie.datastore import validate  # not where it is to be ignored

    for resource in resources:
        try:
            validate.check(validate.with_defaults(resource))
        except TortieError as err:
            raise CommandError(
                f"converted manifest resource(s) failed validation: {err}\n"
                "Re-run the command with '--ignore-validation' flag to see the converted output"
            ) from err


def _shown(resources: list[Resource], form: str) -> str:
    found = list(map(output.plain, resources))
    several = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": found}
    value = found[0] if len(found) == 1 else several
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    return goyaml.dump(value)
