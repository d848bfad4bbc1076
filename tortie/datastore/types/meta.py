"""What every v3 resource has: metadata, the envelope, and the small value types of Calico's API.

Attribute names are the JSON names: one name in YAML, in the code and in Calico's documentation.
Values are frozen; change one with `msgspec.structs.replace`. Field order is Go's, so that what we
write reads like what Calico writes.
"""

import re
from typing import Any, ClassVar, Self

import msgspec
from msgspec import UNSET, UnsetType, structs

API_VERSION = "projectcalico.org/v3"


class ASNumber(int):
    """A BGP AS number: uint32, read as a number, `"65000"` or dotted `"1.10"` (1·65536 + 10)."""

    def __new__(cls, value: object) -> Self:
        number = cls._parse(value)
        if number is None or not 0 <= number <= 0xFFFFFFFF:
            raise ValueError(f"invalid AS Number {value!r}: must be 0-4294967295 or <high>.<low> of 0-65535")
        return super().__new__(cls, number)

    @staticmethod
    def _parse(value: object) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value, re.ASCII):
            return int(value)
        if isinstance(value, str) and (
            dotted := re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", value, re.ASCII)
        ):
            high, low = int(dotted[1]), int(dotted[2])
            return (high << 16) + low if max(high, low) <= 0xFFFF else None
        return None


class Spec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of everything below the envelope: empty optional fields are not written."""


class ObjectMeta(Spec, frozen=True, kw_only=True):
    """Kubernetes object metadata; times are RFC 3339 text, `resourceVersion` is opaque."""

    name: str = ""
    generateName: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""
    generation: int = 0
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    deletionGracePeriodSeconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ownerReferences: tuple[dict[str, Any], ...] = ()
    finalizers: tuple[str, ...] = ()


class Condition(Spec, frozen=True, kw_only=True):
    """metav1.Condition: one observed fact about an object."""

    type: str
    status: str
    observedGeneration: int = 0
    lastTransitionTime: str = ""
    reason: str = ""
    message: str = ""


class SecretKeyRef(Spec, frozen=True, kw_only=True):
    name: str = ""
    key: str = ""
    optional: bool | None = None


class Resource(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """A v3 resource. Subclasses add `spec`, and `status` where the kind has one.

    `origin` is the JSON the value was read from, kept so that fields which this version does not
    know survive a read-modify-write (see codec.encode); it is never written itself.
    """

    KIND: ClassVar[str]

    apiVersion: str = API_VERSION
    metadata: ObjectMeta = ObjectMeta()
    # Overwritten after every decoding, so a stored field of this name has no effect.
    origin: dict[str, Any] | UnsetType = msgspec.field(default=UNSET, name="·origin")

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels

    @property
    def revision(self) -> str:
        return self.metadata.resourceVersion

    def with_metadata(self, **changes: Any) -> Self:
        """A copy with some metadata fields replaced."""
        return structs.replace(self, metadata=structs.replace(self.metadata, **changes))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.KIND = cls.__name__
