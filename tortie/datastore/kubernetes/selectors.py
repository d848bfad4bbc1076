"""Kubernetes label selectors as text of Calico's selector language."""

from tortie.datastore.kubernetes.conversion import RuleError
from tortie.datastore.kubernetes.types import LabelSelector, Requirement
from tortie.datastore.validate.formats import is_qualified_name

# Every pod has it and nothing else: what host endpoints and network sets are told apart by.
_IS_POD = "projectcalico.org/orchestrator == 'k8s'"


def pod_selector(selector: LabelSelector | None) -> str:
    """Pods only, whatever else there is with such labels. Raises RuleError."""
    return " && ".join([_IS_POD, *_terms(selector or LabelSelector())])


def namespace_selector(selector: LabelSelector | None) -> str:
    """None is '', the policy's own namespace; an empty one is all namespaces. Raises RuleError."""
    if selector is None:
        return ""
    return " && ".join(_terms(selector)) or "all()"


def _terms(selector: LabelSelector) -> list[str]:
    labels = [f"{_key(key)} == '{_value(selector.matchLabels[key])}'" for key in sorted(selector.matchLabels)]
    return labels + [_term(expression) for expression in selector.matchExpressions]


def _term(expression: Requirement) -> str:
    key = _key(expression.key)
    values = "', '".join(map(_value, expression.values))
    match expression.operator:
        case "In":
            return f"{key} in {{ '{values}' }}"
        case "NotIn":
            return f"{key} not in {{ '{values}' }}"
        case "Exists":
            return f"has({key})"
        case "DoesNotExist":
            return f"! has({key})"
    # Calico would leave the term out, which selects more than was asked for.
    raise RuleError(f"invalid label selector operator {expression.operator!r}")


def _key(key: str) -> str:
    if not is_qualified_name(key):
        raise RuleError(f"invalid label key {key!r}")
    return key


def _value(value: str) -> str:
    """The language has no escapes: a quote would end the text and begin a selector of the writer's choice.

    The Kubernetes API refuses such values for new objects but keeps what old ones have.
    """
    if "'" in value:
        raise RuleError(f"invalid label value {value!r}")
    return value
