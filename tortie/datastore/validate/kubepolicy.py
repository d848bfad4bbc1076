"""StagedKubernetesNetworkPolicy: a Kubernetes NetworkPolicySpec with a staged action.

Calico converts it and validates the result; the checks here are those that the Kubernetes API makes of the
same fields, so that what passes can be converted.
"""

from typing import Any

from msgspec import UNSET, structs

from tortie.datastore.types.policy import (
    IPBlock,
    KubernetesPort,
    LabelSelector,
    LabelSelectorRequirement,
    StagedKubernetesNetworkPolicy,
)
from tortie.datastore.validate.addresses import net, parse_cidr, real_cidr
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    all_of,
    listing,
    mapping,
    one_of,
    struct,
)
from tortie.datastore.validate.formats import label_value, port_name, port_number, qualified_name


def defaults(policy: StagedKubernetesNetworkPolicy) -> StagedKubernetesNetworkPolicy:
    action = policy.spec.stagedAction
    spec = structs.replace(policy.spec, stagedAction="Set" if action is UNSET or not action else action)
    return structs.replace(policy, spec=spec)


def _values_fit(problems: Problems, path: str, expression: LabelSelectorRequirement) -> None:
    needs_values = expression.operator in ("In", "NotIn")
    if needs_values != bool(expression.values):
        reason = "must be specified for In and NotIn" if needs_values else "may not be specified"
        problems.add(f"{path}.values", None, reason)


_expression = struct(
    {
        "key": qualified_name,
        "operator": one_of("In", "NotIn", "Exists", "DoesNotExist"),
        "values": listing(label_value),
    },
    _values_fit,
    required=("key", "operator"),
)
_label_selector = struct(
    {"matchLabels": mapping(qualified_name, label_value), "matchExpressions": listing(_expression)}
)


def _number_or_name(problems: Problems, path: str, value: Any) -> None:
    (port_name if isinstance(value, str) else port_number)(problems, path, value)


def _end_port(problems: Problems, path: str, port: KubernetesPort) -> None:
    if port.endPort is not None and (not isinstance(port.port, int) or port.endPort < port.port):
        problems.add(f"{path}.endPort", port.endPort, "must be greater than or equal to a numeric port")


def _excepted_within(problems: Problems, path: str, block: IPBlock) -> None:
    whole = parse_cidr(block.cidr)
    for index, value in enumerate(block.except_):
        part = parse_cidr(value)
        if whole and part and not (part[1].version == whole[1].version and part[0] in whole[1]):
            problems.add(f"{path}.except[{index}]", value, "must be within cidr")


_cidr = all_of(real_cidr, net)
_port = struct(
    {"protocol": one_of("TCP", "UDP", "SCTP"), "port": _number_or_name, "endPort": port_number}, _end_port
)
_peer = struct(
    {
        "podSelector": _label_selector,
        "namespaceSelector": _label_selector,
        "ipBlock": struct({"cidr": _cidr, "except_": listing(_cidr)}, _excepted_within, required=("cidr",)),
    }
)


def _spec_of_action(problems: Problems, path: str, spec: Any) -> None:
    if spec.stagedAction != "Delete":
        return
    for field in ("podSelector", "ingress", "egress", "policyTypes"):
        if getattr(spec, field) not in (UNSET, LabelSelector(), ()):
            reason = "Spec fields should all be zero-value if stagedAction is Delete"
            problems.add(f"{path}.{field}", None, reason)


staged_policy: Check = struct(
    {
        "spec": struct(
            {
                "stagedAction": one_of("Set", "Delete", "Learn", "Ignore"),
                "podSelector": _label_selector,
                "ingress": listing(struct({"ports": listing(_port), "from_": listing(_peer)})),
                "egress": listing(struct({"ports": listing(_port), "to": listing(_peer)})),
                "policyTypes": listing(one_of("Ingress", "Egress"), unique=True),
            },
            _spec_of_action,
        )
    }
)
