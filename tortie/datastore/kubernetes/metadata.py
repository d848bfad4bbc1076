"""Metadata of a converted object: whose it is, but a UID of its own."""

import uuid

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.types.meta import ObjectMeta

# Bytes of a UUID that say its version and variant (RFC 9562, section 4): they stay.
_FIXED = (6, 8)


def converted_metadata(metadata: ObjectMeta, name: str = "", namespace: str = "") -> ObjectMeta:
    """Raises ValidationError if the UID is none."""
    return ObjectMeta(
        name=name,
        namespace=namespace,
        uid=converted_uid(metadata.uid),
        resourceVersion=metadata.resourceVersion,
        creationTimestamp=metadata.creationTimestamp,
    )


def converted_uid(uid: str) -> str:
    """Another UID, always the same: two objects with one UID confuse Kubernetes' garbage collection.

    Calico reverses the bits of each byte. Raises ValidationError.
    """
    if not uid:
        return ""
    try:
        data = uuid.UUID(uid).bytes
    except ValueError as err:
        raise ValidationError([FieldError("metadata.uid", uid, "failed to parse UID for resource")]) from err
    turned = (byte if index in _FIXED else _reversed(byte) for index, byte in enumerate(data))
    return str(uuid.UUID(bytes=bytes(turned)))


def _reversed(byte: int) -> int:
    return int(f"{byte:08b}"[::-1], 2)
