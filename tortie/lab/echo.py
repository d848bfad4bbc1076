"""What runs in every pod of a lab: a TCP and UDP server that says who it is, then echoes.

Run as `python -I -S echo.py NAME PORT...`; it imports nothing of Tortie and holds 8 MB. The answer
to a TCP connection, and the prefix of every UDP answer, is `NAME PEER_ADDRESS\\n`: the caller sees
which pod answered and which source address it saw.
"""

import contextlib
import selectors
import socket
import sys

SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python's socket module does not know it
BUFFER = 8 << 20  # bytes of packets that wait while a busy machine runs others: none may be lost to that


def main(name: str, ports: list[int]) -> None:
    selector = selectors.DefaultSelector()
    for port in ports:
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=128, reuse_port=False, dualstack_ipv6=True
        )
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, "accept")
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        datagrams.bind(("::", port))
        datagrams.setblocking(False)
        selector.register(datagrams, selectors.EVENT_READ, "datagram")
    while True:
        for key, _ in selector.select():
            # A peer that resets or vanishes is its own affair; the server goes on.
            with contextlib.suppress(OSError):
                _serve(selector, key.fileobj, key.data, name)  # type: ignore[arg-type]


def _serve(selector: selectors.BaseSelector, ready: socket.socket, kind: str, name: str) -> None:
    if kind == "accept":
        connection, peer = ready.accept()
        connection.sendall(_greeting(name, peer[0]))
        selector.register(connection, selectors.EVENT_READ, "echo")
    elif kind == "datagram":
        data, peer = ready.recvfrom(65536)
        ready.sendto(_greeting(name, peer[0]) + data, peer)
    else:
        try:
            data = ready.recv(65536)
            if data:
                ready.sendall(data)
                return
        except OSError:
            pass  # reset: close it below
        selector.unregister(ready)
        ready.close()


def _greeting(name: str, peer: str) -> bytes:
    return f"{name} {peer.removeprefix('::ffff:')}\n".encode()


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
