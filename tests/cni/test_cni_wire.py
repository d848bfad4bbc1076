"""The frames between shim and server, and what is no frame."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import wire
from tortie.cni.wire import Request
from tortie.core.errors import PeerError

pytestmark = pytest.mark.unit


# --- frames ----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_characters="\0"), max_size=20)
keys = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), max_size=20)


@given(
    texts,
    st.lists(texts, max_size=3),
    st.dictionaries(keys, texts, max_size=3),
    st.binary(),
    st.integers(0, 200),
)
def test_requests_travel_unchanged(
    name: str, arguments: list[str], environment: dict[str, str], stdin: bytes, errno: int
) -> None:
    try:
        os.fsencode("".join([name, *arguments, *environment.values()]))
    except UnicodeEncodeError:
        return  # no program can have been started so
    request = Request(name, tuple(arguments), environment, stdin, errno)
    data = wire.encode_request(request)
    kind, length = wire.header(data[: wire.HEADER.size])
    assert kind == wire.REQUEST and length == len(data) - wire.HEADER.size
    assert wire.decode_request(data[wire.HEADER.size :]) == request


@given(st.binary(max_size=80), st.integers(0, 200))
def test_what_is_no_request_is_refused(data: bytes, cut: int) -> None:
    whole = wire.encode_request(Request("calico", ("-v",), {"A": "b"}, b"{}"))[5:]
    for payload in (data, whole[:cut] + data):
        try:
            wire.decode_request(payload)
        except PeerError:
            continue
        assert payload.startswith(bytes([0, 0, 0, 1]) + b"1")


def test_a_frame_beyond_reason() -> None:
    with pytest.raises(PeerError):
        wire.header(wire.HEADER.pack(b"R", wire.MAX_BYTES + 1))


def test_a_shim_of_another_version_is_told_so() -> None:
    data = wire.encode_request(Request("calico", (), {}, b""))[5:]
    with pytest.raises(PeerError, match="speaks version '9'"):
        wire.decode_request(data[:4] + b"9" + data[5:])


def test_the_answer_of_a_plugin() -> None:
    assert wire.decode_done(b"\0\0\0\2-1\0\0\0\0") == (-1, b"")
    for data in (b"", b"\0\0\0\2-x\0\0\0\0", b"\0\0\0\2-1\0\0\0\1", b"\0\0\0\2-1\0\0\0\0x"):
        with pytest.raises(PeerError):
            wire.decode_done(data)
