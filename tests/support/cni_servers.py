"""Forks CNI servers on demand; see cni.Servers. One JSON question a line in, one number a line out.

With `die_at` a server kills itself just before the n-th step with a lasting effect, which is a write to
the datastore or a request that changes the kernel's network. What a SIGKILL does between two steps can
so be tried at each place, not at random.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tortie.cni import server
from tortie.core.errors import KernelError
from tortie.datastore.etcdlink import EtcdLink
from tortie.linux.codec import RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, Message
from tortie.linux.netlink import NetlinkSocket

_READS = (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE)
_PR_SET_PDEATHSIG = 1


def main() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork() or serve(question["start"], question["log"], question["die_at"])
        print(answer, flush=True)


def serve(environment: Mapping[str, str], log: str, die_at: int) -> int:
    """In the child: never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.clear()
    os.environ.update(environment)
    if die_at:
        count_steps(die_at)
    server._STOP_LIMIT = 120.0  # here nobody kills it after five seconds
    os._exit(server.main())


def count_steps(left: int) -> None:
    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    call, request = EtcdLink.call, NetlinkSocket.request

    async def counted_call(self: EtcdLink, method: Any, payload: bytes) -> Any:
        if method.name in ("put", "txn"):
            step()
        return await call(self, method, payload)

    def counted_request(self: NetlinkSocket, messages: Sequence[Message]) -> list[KernelError | None]:
        results: list[KernelError | None] = []
        for message in messages:  # one by one, so that a kill can fall between them
            if message.kind not in _READS:
                step()
            results += request(self, [message])
        return results

    patched: Any = EtcdLink
    patched.call = counted_call
    patched = NetlinkSocket
    patched.request = counted_request


if __name__ == "__main__":
    main()
