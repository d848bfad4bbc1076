"""Run the commands of a page in the demo cluster and write down what they print: see `./dev walk`.

A command stands in a fenced block as `WHERE$ COMMAND`, WHERE a node or a pod of the demo; what follows up
to an empty line before the next command, or to the end of the block, is what it printed. `tcpdump` runs
beside the other commands of its block. Interfaces, addresses and blocks that the page's prose names are
not looked at: they follow from the names of pods and nodes, so they change only with these.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

_BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^([a-z0-9-]+)\$ (.+)$", re.MULTILINE)
_ROOT = Path(__file__).resolve().parent.parent
_LISTENING = 1.0  # seconds until tcpdump hears everything
_HEARD = 0.5  # seconds until it has written what it heard


def refreshed(page: str) -> str:
    """The page with the output of today."""
    return _BLOCK.sub(lambda block: "```\n" + _block(block[1]) + "```", page)


def _block(text: str) -> str:
    commands = _COMMAND.findall(text)
    if not commands:
        return text
    captures = {words: _started(*words) for words in commands if words[1].startswith("tcpdump")}
    if captures:
        time.sleep(_LISTENING)
    shown = {words: _started(*words).communicate()[0] for words in commands if words not in captures}
    if captures:
        time.sleep(_HEARD)
    for words, capture in captures.items():
        subprocess.run([*_inside(words[0]), "pkill", "-INT", "tcpdump"], check=False)
        shown[words] = capture.communicate()[0]
    return "\n".join(f"{where}$ {command}\n{_tidy(shown[where, command])}" for where, command in commands)


def _inside(where: str) -> list[str]:
    return [str(_ROOT / "dev"), "shell", where]


def _started(where: str, command: str) -> subprocess.Popen[str]:
    errors = (
        subprocess.DEVNULL if command.startswith(("tcpdump", "conntrack")) else subprocess.STDOUT
    )  # banners
    return subprocess.Popen(
        [*_inside(where), "sh", "-c", command], stdout=subprocess.PIPE, stderr=errors, text=True
    )


def _tidy(output: str) -> str:
    return "".join(line.rstrip() + "\n" for line in output.strip("\n").splitlines())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refreshed(path.read_text()))
