"""Namespaces and service accounts as the profiles through which pods inherit their labels."""

from typing import Any

from msgspec import structs

from tortie.datastore.codec import from_plain
from tortie.datastore.kubernetes.metadata import converted_metadata
from tortie.datastore.types.pod import Metadata
from tortie.datastore.types.policy import Profile, ProfileSpec, Rule

NAMESPACE_LABEL, NAMESPACE_PROFILE = "pcns.", "kns."  # prefixes of labels and of profiles
SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PROFILE = "pcsa.", "ksa."
_NAME = "projectcalico.org/name"  # a label by which either can be selected by name


def namespace_profile(raw: Any) -> Profile:
    """A v1 Namespace: its labels, and leave to everything that no policy decides. Raises ValidationError."""
    found = from_plain(Metadata, raw).metadata
    everything = (Rule(action="Allow"),)
    labels = _prefixed(NAMESPACE_LABEL, found.labels | {_NAME: found.name})
    spec = ProfileSpec(ingress=everything, egress=everything, labelsToApply=labels)
    metadata = structs.replace(
        converted_metadata(found, NAMESPACE_PROFILE + found.name), resourceVersion=f"{found.resourceVersion}/"
    )
    return Profile(metadata=metadata, spec=spec)


def service_account_profile(raw: Any) -> Profile:
    """A v1 ServiceAccount: its labels, and no rules. Raises ValidationError."""
    found = from_plain(Metadata, raw).metadata
    name = f"{SERVICE_ACCOUNT_PROFILE}{found.namespace or 'default'}.{found.name}"
    labels = _prefixed(SERVICE_ACCOUNT_LABEL, found.labels | {_NAME: found.name})
    metadata = structs.replace(converted_metadata(found, name), resourceVersion=f"/{found.resourceVersion}")
    return Profile(metadata=metadata, spec=ProfileSpec(labelsToApply=labels))


def _prefixed(prefix: str, labels: dict[str, str]) -> dict[str, str]:
    return {prefix + key: value for key, value in labels.items()}
