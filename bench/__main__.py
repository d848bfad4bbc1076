"""`python -m bench [NAME [ARGUMENTS]]`: runs the benchmarks of this folder, each in a process of its own.

Without a name all of them run, one after the other; `list` only names them. What each measures is the
first sentence of its own docstring.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_LIST = ("list", "-h", "--help", "help")
_COMMAND = re.compile(r" `(sudo|python) [^`]*`\.?$")  # how it is called, at the end of a first line


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 1 if a benchmark failed, or 2 if there is none of that name."""
    scripts = {path.stem: path for path in sorted(_FOLDER.glob("*.py")) if path.stem != "__main__"}
    if argv and argv[0] in _LIST:
        print(catalogue(scripts))
        return 0
    if argv and argv[0] not in scripts:
        print(f"error: there is no benchmark {argv[0]!r}; there are:\n{catalogue(scripts)}", file=sys.stderr)
        return 2
    chosen = [argv[0]] if argv else list(scripts)
    if not argv:
        print(catalogue(scripts), flush=True)
    failed = [name for name in chosen if not run(scripts[name], argv[1:], title=not argv)]
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def catalogue(scripts: dict[str, Path]) -> str:
    """A line for each benchmark."""
    width = max(map(len, scripts))
    return "\n".join(f"  {name:{width}}  {summary(path)}" for name, path in scripts.items())


def summary(path: Path) -> str:
    """The first line of the module's docstring, without the command line that some have at its end."""
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return _COMMAND.sub("", first).rstrip(":.,")


def run(script: Path, arguments: Sequence[str], *, title: bool) -> bool:
    """Whether it succeeded."""
    if title:
        print(f"\n\033[1m{script.stem}: {summary(script)}\033[0m", flush=True)
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode == 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
