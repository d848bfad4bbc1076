"""One run of one command: what it was asked, and the world it talks to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

from tortie.calicoctl.errors import printable
from tortie.calicoctl.tree import Command


@dataclass(frozen=True, slots=True)
class Call:
    """`flags` has every flag of the command by name; `words` are the arguments that are no flags."""

    root: Command
    flags: Mapping[str, Any]
    words: list[str]
    env: Mapping[str, str]
    stdin: BinaryIO
    stdout: TextIO
    stderr: TextIO

    def out(self, text: str) -> None:
        """To stdout as it is: whoever composes the text has made its values printable."""
        self.stdout.write(text)

    def err(self, text: str) -> None:
        """A message and a newline to stderr, its control characters escaped."""
        self.stderr.write(printable(text, keep="\n\t") + "\n")
