"""The dozen etcd messages this program uses, to and from protobuf's wire format.

Pure: bytes in, plain values out. Generated bindings are not used because the ones that exist (the
etcd3 package's) are older than progress requests and fragments, without which a silent watch is not
noticed and a large one not bounded; and they run on protobuf's pure-Python implementation only, at
8 MB in each process of a node and 0.1 ms in each transaction. The format itself needs no more than the
few functions at the end of this file.

Field numbers are those of etcd's rpc.proto and kv.proto.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

# --- requests -----------------------------------------------------------------------------------

_RANGE, _PUT, _DELETE = 1, 2, 3  # members of RequestOp and ResponseOp
_VERSION, _MOD_REVISION = 0, 2  # what a Compare looks at


def range_(key: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> bytes:
    """Read one key, or [key, end); at most `limit` entries (0: all), at a revision (0: the latest)."""
    return _message((1, key), (2, end), (3, limit), (4, revision))


def put(key: bytes, value: bytes, lease: int = 0) -> bytes:
    return _message((1, key), (2, value), (3, lease))


def txn(compare: Sequence[bytes], success: bytes, failure: bytes) -> bytes:
    """If all compares hold do the one operation, else the other."""
    return _message(*((1, condition) for condition in compare), (2, success), (3, failure))


def compare_version(key: bytes, version: int) -> bytes:
    """True if the key was written `version` times since it was created; 0: it does not exist."""
    return _message((2, _VERSION), (3, key)) + _field(4, version)


def compare_revision(key: bytes, revision: int) -> bytes:
    """True if `revision` wrote the key last."""
    return _message((2, _MOD_REVISION), (3, key)) + _field(6, revision)


def op_range(key: bytes) -> bytes:
    return _field(_RANGE, range_(key))


def op_put(key: bytes, value: bytes) -> bytes:
    return _field(_PUT, put(key, value))


def op_delete(key: bytes) -> bytes:
    """Delete one key and return what it was."""
    return _field(_DELETE, _message((1, key), (3, 1)))


def lease_grant(ttl: int) -> bytes:
    """`ttl` is in seconds."""
    return _message((1, ttl))


def compaction(revision: int) -> bytes:
    """Forget what was before a revision; only what is there keeps its value."""
    return _message((1, revision))


def watch(key: bytes, end: bytes, start_revision: int) -> bytes:
    """Follow [key, end) from a revision on; large replies come in fragments, quiet ones as progress."""
    return _field(1, _message((1, key), (2, end), (3, start_revision), (4, 1), (8, 1)))


def watch_progress() -> bytes:
    """Ask a watch stream for a sign of life."""
    return _field(3, b"")


def authenticate(name: str, password: str) -> bytes:
    return _message((1, name.encode()), (2, password.encode()))


# --- replies ------------------------------------------------------------------------------------


class Entry(NamedTuple):
    key: bytes
    value: bytes
    revision: int  # mod_revision: of the last write, or of the deletion


class RangeReply(NamedTuple):
    revision: int  # of the whole store
    entries: list[Entry]
    more: bool  # `limit` cut the answer short


class TxnReply(NamedTuple):
    revision: int
    succeeded: bool
    entries: list[Entry]  # what the operation read or deleted


class WatchReply(NamedTuple):
    """One message of a watch stream; `revision` is the store's when it was sent."""

    revision: int
    watch_id: int  # -1: concerns the stream, not one watch
    created: bool
    canceled: bool
    compact_revision: int  # > 0: the watch asked for history that is gone
    reason: str  # why it was cancelled
    fragment: bool  # more events of the same moment follow
    events: list[tuple[bool, Entry]]  # (deleted, entry)


def read_range(data: bytes) -> RangeReply:
    """Like all readers below: raises ValueError if `data` is not such a message."""
    revision, more = 0, False
    entries = []
    for number, value, content in _fields(data):
        if number == 1:
            revision = _revision(content)
        elif number == 2:
            entries.append(_entry(content))
        elif number == 3:
            more = bool(value)
    return RangeReply(revision, entries, more)


def read_put(data: bytes) -> int:
    """The revision that a put made."""
    return next((_revision(content) for number, _, content in _fields(data) if number == 1), 0)


def read_txn(data: bytes) -> TxnReply:
    revision, succeeded = 0, False
    entries: list[Entry] = []
    for number, value, content in _fields(data):
        if number == 1:
            revision = _revision(content)
        elif number == 2:
            succeeded = bool(value)
        elif number == 3:
            entries += _operation(content)
    return TxnReply(revision, succeeded, entries)


def read_lease(data: bytes) -> int:
    """The new lease's ID."""
    return next((value for number, value, _ in _fields(data) if number == 2), 0)


def read_token(data: bytes) -> str:
    return next((content.decode() for number, _, content in _fields(data) if number == 2), "")


def read_watch(data: bytes) -> WatchReply:
    numbers = {2: 0, 3: 0, 4: 0, 5: 0, 7: 0}  # field -> value
    revision, reason = 0, ""
    events = []
    for number, value, content in _fields(data):
        if number == 1:
            revision = _revision(content)
        elif number == 6:
            reason = content.decode("utf-8", "replace")
        elif number == 11:
            events.append(_event(content))
        else:
            numbers[number] = value
    watch_id, created, canceled, compacted, fragment = (numbers[n] for n in (2, 3, 4, 5, 7))
    return WatchReply(
        revision, _signed(watch_id), bool(created), bool(canceled), compacted, reason, bool(fragment), events
    )


def _revision(header: bytes) -> int:
    return next((value for number, value, _ in _fields(header) if number == 3), 0)


def _entry(data: bytes) -> Entry:
    key = value = b""
    revision = 0
    for number, integer, content in _fields(data):
        if number == 1:
            key = content
        elif number == 3:
            revision = integer
        elif number == 5:
            value = content
    return Entry(key, value, revision)


def _event(data: bytes) -> tuple[bool, Entry]:
    deleted, entry = False, Entry(b"", b"", 0)
    for number, value, content in _fields(data):
        if number == 1:
            deleted = value == 1
        elif number == 2:
            entry = _entry(content)
    return deleted, entry


def _operation(data: bytes) -> list[Entry]:
    """The entries of one ResponseOp: kvs of a range, prev_kvs of a deletion; a put has none."""
    entries = []
    for kind, _, response in _fields(data):
        listed = {_RANGE: 2, _DELETE: 3}.get(kind)
        entries += [_entry(content) for number, _, content in _fields(response) if number == listed]
    return entries


# --- methods ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method(Generic[T]):
    """One of etcd's unary calls: its gRPC path, and how its reply is read (ValueError if it is not)."""

    name: str
    path: str
    read: Callable[[bytes], T]


RANGE = Method("range", "/etcdserverpb.KV/Range", read_range)
PUT = Method("put", "/etcdserverpb.KV/Put", read_put)
TXN = Method("txn", "/etcdserverpb.KV/Txn", read_txn)
LEASE = Method("lease", "/etcdserverpb.Lease/LeaseGrant", read_lease)
COMPACT = Method("compact", "/etcdserverpb.KV/Compact", bytes)
LOGIN = Method("login", "/etcdserverpb.Auth/Authenticate", read_token)
STATUS = Method("status", "/etcdserverpb.Maintenance/Status", bytes)  # only that it answers matters
WATCH_PATH = "/etcdserverpb.Watch/Watch"  # a stream


# --- the wire format ----------------------------------------------------------------------------


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """(field number, value) pairs in order. Zero and empty ones are left out: to etcd a range end that
    is present and empty means "to the end of the store"."""
    return b"".join(_field(number, value) for number, value in fields if value)


def _field(number: int, value: int | bytes) -> bytes:
    """Present whatever its value, as a member of a oneof must be: a compare without operand is true."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Negative numbers as 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each field as (number, integer, content), of which one is set. Raises ValueError if cut short.

    Written out rather than split up: a list of 10,000 objects passes here 70,000 times.
    """
    at, end = 0, len(data)
    try:
        while at < end:
            tag = data[at]
            at += 1
            if tag > 0x7F:
                tag, at = _read_varint(data, at - 1)
            wire = tag & 7
            if wire == 1 or wire == 5:  # fixed-width numbers; etcd sends none, a later one may
                at += 8 if wire == 1 else 4
                continue
            value = data[at]
            at += 1
            if value > 0x7F:
                value, at = _read_varint(data, at - 1)
            if wire == 0:
                yield tag >> 3, value, b""
            elif wire == 2:
                yield tag >> 3, 0, data[at : at + value]
                at += value
            else:
                raise ValueError(f"protobuf wire type {wire} is unknown")
    except IndexError:
        at = end + 1
    if at != end:
        raise ValueError("protobuf message is cut short")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise ValueError("protobuf number is longer than 64 bits")
