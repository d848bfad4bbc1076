"""A Kubernetes node's labels on its node in etcd, beside those that somebody else has given it. Pure.

An annotation says which were copied, so that one which the Kubernetes node has lost is taken away, and
one which a person gave stays. (Reference: kube-controllers/pkg/controllers/node/labels.go.)
"""

from collections.abc import Mapping

import msgspec

from tortie.datastore.kubernetes.nodes import KUBE_LABELS
from tortie.datastore.types.node import Node

ORCHESTRATOR = "k8s"


def kubernetes_name(node: Node) -> str:
    """Which Kubernetes node a node is; "" if it is none."""
    return next((ref.nodeName for ref in node.spec.orchRefs if ref.orchestrator == ORCHESTRATOR), "")


def labelled(node: Node, labels: Mapping[str, str]) -> Node:
    """The node with these labels of its Kubernetes node; itself if nothing changes.

    What the annotation says is not believed if it is no map of strings: nothing is taken away then.
    """
    try:
        before = msgspec.json.decode(node.metadata.annotations.get(KUBE_LABELS, "{}"), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError):
        before = {}
    kept = {name: value for name, value in node.labels.items() if name not in before or name in labels}
    text = msgspec.json.encode(dict(labels), order="sorted").decode()
    wanted = node.with_metadata(
        labels=kept | dict(labels), annotations=node.metadata.annotations | {KUBE_LABELS: text}
    )
    return node if wanted.metadata == node.metadata else wanted


def copied(node: Node) -> dict[str, str]:
    """The labels of a Kubernetes node that was read from the API: its own, without what is added to them."""
    found: dict[str, str] = msgspec.json.decode(
        node.metadata.annotations.get(KUBE_LABELS, "{}"), type=dict[str, str]
    )
    return found
