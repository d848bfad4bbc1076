"""Resources from plain data, the way they come from a file or the datastore, and what is wrong with them."""

from typing import Any

from tortie.core.errors import ValidationError
from tortie.datastore import codec, validate
from tortie.datastore.kinds import KINDS
from tortie.datastore.types.meta import Resource

_NAMES = {  # kind -> a legal name, where "test" is none
    "BGPConfiguration": "default",
    "ClusterInformation": "default",
    "IPAMConfiguration": "default",
    "KubeControllersConfiguration": "default",
}


def resource(kind: str, spec: dict[str, Any] | None = None, status: Any = None, **metadata: Any) -> Resource:
    """A resource of this kind with a legal name and namespace unless others are given."""
    known = {"name": "" if kind == "WorkloadEndpoint" else _NAMES.get(kind, "test")}
    if KINDS[kind].namespaced:
        known["namespace"] = "shop"
    raw: dict[str, Any] = {"kind": kind, "metadata": known | metadata, "spec": spec or {}}
    if status is not None:
        raw["status"] = status
    return codec.from_plain(KINDS[kind].type, raw)


def problems(kind: str, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, str]:
    """Field -> reason, of everything that is wrong once defaults are filled in."""
    try:
        validate.check(validate.with_defaults(resource(kind, spec, **more)))
    except ValidationError as err:
        assert str(err).isprintable() or "\n-  " in str(err)  # one line per problem, none forged
        return {wrong.field: wrong.reason for wrong in err.fields}
    return {}
