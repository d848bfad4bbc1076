"""Run the commands of a page in the demo cluster and write down what they print: see `./dev walk`.

A command stands in a fenced block as `WHERE$ COMMAND`, WHERE a node or a pod of the demo; what follows up
to an empty line before the next command, or to the end of the block, is what it printed. `tcpdump` runs
beside the other commands of its block. Blocks fenced as `guest` or `qemu` are run in the same cluster in a
guest whose kernel has IPIP or WireGuard. Interfaces, addresses and blocks that the page's prose names are not
looked at: they follow from the names of pods and nodes, so they change only with these.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tortie.lab import demo
from tortie.lab.cluster import Lab

_BLOCK = re.compile(r"^```(guest|qemu)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^([a-z0-9-]+)\$ (.+)$", re.MULTILINE)
_ROOT = Path(__file__).resolve().parent.parent
_LISTENING = 1.0  # seconds until tcpdump hears everything
_HEARD = 0.5  # seconds until it has written what it heard


Inside = Callable[[str], list[str]]  # WHERE -> what a command line there begins with


class _Kind(NamedTuple):
    """`options`: of tortie.lab.guest. `module`: what its kernel is to load."""

    options: tuple[str, ...]
    module: str
    nodes: int
    settings: dict[str, str]  # of the nodes' agents


_GUESTS = {
    # user-mode Linux has no tables of nftables, which iptables' other backend needs
    "guest": _Kind(("--user-mode",), "ipip", 3, {"FELIX_IPTABLESBACKEND": "legacy"}),
    # it has no WireGuard either; QEMU does, and computes much longer for each node
    "qemu": _Kind((), "wireguard", 2, {}),
}


def replaced(page: str, kind: str, show: Callable[[str], str]) -> str:
    """The page with every block of the kind, one of the guests' or '', as `show` says."""

    def one(block: re.Match[str]) -> str:
        return f"```{kind}\n{show(block[2])}```" if (block[1] or "") == kind else block[0]

    return _BLOCK.sub(one, page)


def _run(text: str, inside: Inside) -> str:
    """A block with the output of today."""
    commands = _COMMAND.findall(text)
    if not commands:
        return text
    captures = {words: _started(inside, *words) for words in commands if words[1].startswith("tcpdump")}
    if captures:
        time.sleep(_LISTENING)
    shown = {words: _started(inside, *words).communicate()[0] for words in commands if words not in captures}
    if captures:
        time.sleep(_HEARD)
    for words, capture in captures.items():
        subprocess.run([*inside(words[0]), "pkill", "-INT", "tcpdump"], check=False)
        shown[words] = capture.communicate()[0]
    return "\n".join(f"{where}$ {command}\n{_tidy(shown[where, command])}" for where, command in commands)


def _started(inside: Inside, where: str, command: str) -> subprocess.Popen[str]:
    errors = (
        subprocess.DEVNULL if command.startswith(("tcpdump", "conntrack")) else subprocess.STDOUT
    )  # banners
    return subprocess.Popen(
        [*inside(where), "sh", "-c", command], stdout=subprocess.PIPE, stderr=errors, text=True
    )


def _tidy(output: str) -> str:
    return "".join(line.rstrip() + "\n" for line in output.strip("\n").splitlines())


# --- the demo ------------------------------------------------------------------------------------------


def _in_demo(where: str) -> list[str]:
    return [str(_ROOT / "dev"), "shell", where]


def _refresh(path: Path) -> int:
    """All kinds of blocks; the page stays as it is if one cannot be run."""
    if subprocess.run([*_in_demo("node-1"), "true"], check=False).returncode != 0:
        return 1
    page = path.read_text()
    for kind, guest in _GUESTS.items():
        here = [sys.executable, "-m", "tortie.lab.guest", *guest.options, sys.executable, __file__]
        answer = subprocess.run(
            [*here, f"--{kind}", str(path)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
        )
        if answer.returncode != 0:
            print(f"error: the part of {kind} failed:\n{answer.stdout.decode()}", file=sys.stderr)
            return 1
        blocks = iter(json.loads(answer.stdout.splitlines()[-1]))
        page = replaced(page, kind, lambda _text, blocks=blocks: next(blocks))  # type: ignore[misc]
    path.write_text(replaced(page, "", lambda text: _run(text, _in_demo)))
    return 0


# --- the guests ----------------------------------------------------------------------------------------


def _show_guest(path: Path, kind: str) -> int:
    """In a guest: the demo's cluster; the blocks, as JSON, are the last line of what is printed."""
    guest = _GUESTS[kind]
    subprocess.run(["modprobe", guest.module], check=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), guest.nodes, agent_env=guest.settings)
        try:
            lab.up()
            demo.add_pods(lab)
            blocks: list[str] = []
            replaced(path.read_text(), kind, lambda text: blocks.append(_run(text, _of(lab))) or text)
        finally:
            lab.down()
    print(json.dumps(blocks))
    return 0


def _of(lab: Lab) -> Inside:
    scripts = f"PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    setting = ["env", scripts, f"ETCD_ENDPOINTS={lab.etcd.endpoint}"]
    return lambda where: [
        *(lab.nodes[where].box.command([]) if where in lab.nodes else lab.pods[where].command()),
        *setting,
    ]


if __name__ == "__main__":
    *mode, name = sys.argv[1:]
    sys.exit(_show_guest(Path(name), mode[0].removeprefix("--")) if mode else _refresh(Path(name)))
