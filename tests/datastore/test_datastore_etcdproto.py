"""The wire format: what etcd's messages look like in bytes, and that no bytes crash the readers.

That etcd understands them is shown by test_datastore_etcd.py; here are the corners it never reaches.
"""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.datastore import etcdproto as proto
from tortie.datastore.etcdproto import Entry

pytestmark = pytest.mark.unit

values = st.integers(0, 2**63 - 1) | st.binary(max_size=300)
numbers = st.integers(1, 2000)


@given(st.lists(st.tuples(numbers, values), max_size=8))
def test_fields_come_back_as_they_were_written(fields: list[tuple[int, int | bytes]]) -> None:
    data = b"".join(proto._field(number, value) for number, value in fields)
    read = list(proto._fields(data))
    assert [
        (number, value if isinstance(given_, int) else content)
        for (number, value, content), (_, given_) in zip(read, fields, strict=True)
    ] == fields


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_64_bits(value: int) -> None:
    ((_, unsigned, _),) = proto._fields(proto._field(1, value))
    assert proto._signed(unsigned) == value


def test_zero_and_empty_fields_are_absent_unless_their_presence_means_something() -> None:
    # A present but empty range end would make a read of one key one of the whole store.
    assert proto.range_(b"k") == b"\x0a\x01k"
    assert proto.put(b"k", b"") == b"\x0a\x01k"
    # A compare without its operand is always true: create would overwrite.
    assert proto.compare_version(b"k", 0).endswith(b"\x20\x00")
    assert proto.compare_revision(b"k", -1).endswith(b"\x30" + b"\xff" * 9 + b"\x01")
    assert proto.watch_progress() == b"\x1a\x00"
    assert proto.op_delete(b"k") == b"\x1a\x05\x0a\x01k\x18\x01"  # exactly one key, with what it was


READERS = [
    proto.read_range,
    proto.read_put,
    proto.read_txn,
    proto.read_lease,
    proto.read_token,
    proto.read_watch,
]

ENTRY = proto._message((1, b"key"), (2, 5), (3, 300), (4, 2), (5, b"value" * 40), (6, 9))
HEADER = proto._message((1, 2**64 - 1), (2, 2**63), (3, 1234), (4, 7))
UNKNOWN = proto._field(99, b"later") + proto._field(98, 1) + b"\x91\x06" + b"x" * 8 + b"\x95\x06" + b"y" * 4


def test_replies_are_read_past_unknown_fields() -> None:
    entry = Entry(b"key", b"value" * 40, 300)
    header = proto._field(1, HEADER + UNKNOWN)
    kvs = proto._field(2, ENTRY + UNKNOWN) * 2
    assert proto.read_range(UNKNOWN + header + kvs + proto._message((3, 1), (4, 2))) == (
        1234,
        [entry, entry],
        True,
    )
    assert proto.read_put(header + UNKNOWN) == 1234
    assert proto.read_lease(header + proto._field(2, 77)) == 77
    assert proto.read_token(header + proto._field(2, b"abc.1")) == "abc.1"
    ranged = proto._field(3, proto._field(1, header + kvs))
    deleted = proto._field(3, proto._field(3, header + proto._field(2, 1) + proto._field(3, ENTRY)))
    assert proto.read_txn(header + ranged) == (1234, False, [entry, entry])
    assert proto.read_txn(header + proto._field(2, 1) + deleted) == (1234, True, [entry])
    assert proto.read_txn(header + proto._field(2, 1) + proto._field(3, proto._field(2, header))) == (
        1234,
        True,
        [],
    )


def test_watch_replies() -> None:
    events = proto._field(11, proto._field(2, ENTRY)) + proto._field(11, proto._message((1, 1), (2, ENTRY)))
    reply = proto.read_watch(proto._field(1, HEADER) + proto._field(7, 1) + events + UNKNOWN)
    assert (reply.revision, reply.watch_id, reply.fragment) == (1234, 0, True)
    assert [deleted for deleted, _ in reply.events] == [False, True]
    cancelled = proto.read_watch(
        proto._message((2, -1), (3, 1), (4, 1), (5, 88), (6, b"etcdserver: permission denied \xff"))
    )
    assert cancelled[1:6] == (-1, True, True, 88, "etcdserver: permission denied �")


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_value_error(reader: object, data: bytes) -> None:
    with contextlib.suppress(ValueError):
        reader(data)  # type: ignore[operator]


def test_a_message_that_was_cut_short_is_refused() -> None:
    whole = proto._field(1, HEADER) + proto._field(2, ENTRY)
    complete = {len(proto._field(1, HEADER)), 0, len(whole)}
    for end in range(len(whole) + 1):
        if end in complete:
            proto.read_range(whole[:end])
        else:
            with pytest.raises(ValueError, match="cut short"):
                proto.read_range(whole[:end])
    for bad, reason in [
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x08" + b"\xff" * 11, "64 bits"),
    ]:
        with pytest.raises(ValueError, match=reason):
            proto.read_range(bad + b"\x00")
