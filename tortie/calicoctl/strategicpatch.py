"""Kubernetes' strategic merge patch, for types whose lists have no merge keys (all of Calico's). Pure.

Objects merge field by field, null removes a field, everything else replaces. The directives `$patch`,
`$retainKeys`, `$deleteFromPrimitiveList/…` and `$setElementOrder/…` are understood.
"""

from typing import Any

_DELETE_FROM = "$deleteFromPrimitiveList/"
_ORDER_OF = "$setElementOrder/"
_ATOMIC_EXCEPTIONS = {"finalizers"}  # the one list of a resource's metadata that Kubernetes merges


def merged(original: dict[str, Any], patch: Any) -> dict[str, Any]:
    """The patched object; neither argument is changed. Raises ValueError for a bad patch."""
    if not isinstance(patch, dict):
        raise ValueError("invalid JSON document")
    if "$patch" in patch:
        rest = {name: value for name, value in patch.items() if name != "$patch"}
        match patch["$patch"]:
            case "replace":
                return rest
            case "delete":
                return {}
            case "merge":
                return merged(original, rest)
            case other:
                raise ValueError(f"unknown patch type found: {other}")
    result = _retained(original, patch.get("$retainKeys"))
    for name, value in patch.items():
        if name.startswith(_DELETE_FROM):
            _delete_from(result, name.removeprefix(_DELETE_FROM), value)
        elif name == "$retainKeys" or name.startswith(_ORDER_OF):
            continue
        elif value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            old = result.get(name)
            result[name] = merged(old if isinstance(old, dict) else {}, value)
        elif name in _ATOMIC_EXCEPTIONS and isinstance(value, list) and isinstance(result.get(name), list):
            result[name] = result[name] + [item for item in value if item not in result[name]]
        else:
            result[name] = value
    return result


def _retained(original: dict[str, Any], keys: Any) -> dict[str, Any]:
    if keys is None:
        return dict(original)
    if not isinstance(keys, list):
        raise ValueError("$retainKeys must be a list of field names")
    return {name: value for name, value in original.items() if name in keys}


def _delete_from(result: dict[str, Any], name: str, items: Any) -> None:
    if not isinstance(items, list):
        raise ValueError(f"{_DELETE_FROM}{name} must be a list")
    if isinstance(result.get(name), list):
        result[name] = [item for item in result[name] if item not in items]
