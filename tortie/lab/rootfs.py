"""What is in our image and in those of the lab's pods: files of this machine, where Debian has them.

Our image is what manifests/Dockerfile says: the packages that its last stage installs with all that they
depend on, this checkout and its dependencies, its plugins and links. Nothing is fetched: ./dev has
installed the packages.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from tortie.core.errors import ConfigError
from tortie.lab.image import Entry

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = "usr/lib/python3/dist-packages"  # where Debian's Python looks by itself
_BASE = ("base-files", "dash", "coreutils", "libc-bin", "grep", "sed")  # what debian:12-slim has before
_DOCKERFILE = _ROOT / "manifests" / "Dockerfile"
_MERGED = ("bin", "sbin", "lib", "lib64")  # links to the same in /usr
_LEFT_OUT = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug|zoneinfo)/|/usr/lib/python3.*/test/")


def calico() -> list[Entry]:
    """Our image. Raises ConfigError for what is not installed."""
    found = {entry.path: entry for entry in (*_merged(), *_debian(), *_python(), *_programs())}
    return list(found.values())


def busybox() -> list[Entry]:
    """A pod's: a shell, a web server, wget; and what a sandbox runs, which only sleeps."""
    program = Path("/bin/busybox")
    if not program.exists():
        raise ConfigError("busybox", str(program), "is not installed (Debian package busybox-static)")
    done = subprocess.run([program, "--list"], check=True, capture_output=True, text=True)
    links = [Entry(f"bin/{name}", link="busybox") for name in done.stdout.split() if name != "busybox"]
    account = Entry("etc/passwd", text="root:x:0:0::/:/bin/sh\n", mode=0o644)
    return [Entry("bin/busybox", source=program), *links, account]


# --- Debian's files -----------------------------------------------------------------------------


def wanted_packages(dockerfile: str) -> list[str]:
    """What the last stage installs. Pure. Raises ConfigError."""
    final = dockerfile.rpartition("\nFROM ")[2].replace("\\\n", " ")
    match = re.search(r"apt-get install -y --no-install-recommends ([^&]+)", final)
    if match is None:
        raise ConfigError("Dockerfile", "", "its last stage installs nothing")
    return match[1].split()


def words_of(dockerfile: str, variable: str) -> list[str]:
    """What a loop of the shell over `variable` goes through. Pure."""
    match = re.search(rf"for {variable} in ([^;]+);", dockerfile)
    return match[1].split() if match else []


def closure(wanted: list[str], depends: dict[str, list[list[str]]]) -> set[str]:
    """`wanted` and what they need; `depends`: package -> for each need the alternatives. Pure."""
    found: set[str] = set()
    left = list(wanted)
    while left:
        package = left.pop()
        if package in found or package not in depends:
            continue
        found.add(package)
        left += [next((a for a in any_of if a in depends), "") for any_of in depends[package]]
    return found


@cache
def _depends() -> dict[str, list[list[str]]]:
    """Of what is installed, virtual packages included: they need who provides them."""
    fields = "${Package}\t${db:Status-Status}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    done = subprocess.run(["dpkg-query", "-W", "-f", fields], check=True, capture_output=True, text=True)
    found: dict[str, list[list[str]]] = {}
    virtual: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        package, status, needs, provides = line.split("\t")
        if status == "installed":
            found[package] = _needs(needs)
            virtual |= {name: [[package]] for [name] in _needs(provides)}
    return virtual | found


def _needs(field: str) -> list[list[str]]:
    parts = [part for part in field.split(",") if part.strip()]
    return [[re.split(r"[\s:(]", name.strip())[0] for name in part.split("|")] for part in parts]


def _debian() -> Iterator[Entry]:
    wanted = [*_BASE, *wanted_packages(_DOCKERFILE.read_text())]
    if missing := [package for package in wanted if package not in _depends()]:
        raise ConfigError("package", missing, "is not installed: run ./dev kube")
    packages = sorted(closure(wanted, _depends()) & _real_packages())
    done = subprocess.run(["dpkg", "-L", *packages], check=True, capture_output=True, text=True)
    here: set[Path] = set()
    for line in set(done.stdout.splitlines()):
        path = Path(line)
        if not line.startswith("/") or _LEFT_OUT.search(line) or not (path.is_symlink() or path.is_file()):
            continue
        yield from _entry(path, here)
    yield from _alternatives(here)
    for cached in Path("/usr/lib").glob(f"python3.{sys.version_info.minor}/**/__pycache__/*.pyc"):
        if not _LEFT_OUT.search(str(cached)):
            yield from _entry(cached, here)


def _real_packages() -> set[str]:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\n"], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def _entry(path: Path, here: set[Path]) -> Iterator[Entry]:
    """At its place below /usr, whichever name the package calls it by."""
    place = Path(os.path.realpath(path.parent)) / path.name
    if place not in here:
        here.add(place)
        inside = str(place).lstrip("/")
        yield Entry(inside, link=os.readlink(place)) if place.is_symlink() else Entry(inside, source=place)


def _alternatives(here: set[Path]) -> Iterator[Entry]:
    """iptables is a link to a link to a program, which no package owns."""
    for folder in ("/usr/bin", "/usr/sbin"):
        for path in Path(folder).iterdir():
            if not path.is_symlink() or not os.readlink(path).startswith("/etc/alternatives/"):
                continue
            if Path(os.path.realpath(path)) in here:
                middle = Path(os.readlink(path))
                yield Entry(str(path).lstrip("/"), link=str(middle))
                yield Entry(str(middle).lstrip("/"), link=os.readlink(middle))


def _merged() -> Iterator[Entry]:
    """What no package owns: the links of a merged /usr, users, and a place for temporary files."""
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            yield Entry(name, link=f"usr/{name}")
    yield Entry("etc/passwd", text="root:x:0:0::/root:/bin/sh\ncalico:x:10001:10001::/:/bin/sh\n", mode=0o644)
    yield Entry("tmp/.keep", text="", mode=0o644)


# --- ours ---------------------------------------------------------------------------------------


def _python() -> Iterator[Entry]:
    """This package and what it depends on, from the environment that we run in."""
    for name in sorted(closure(["tortie"], _distributions())):
        if name != "tortie":
            distribution = metadata.distribution(name)
            for file in distribution.files or []:
                path = Path(str(distribution.locate_file(file)))
                if ".." not in file.parts and path.is_file():
                    yield Entry(f"{_PACKAGES}/{file}", source=path)
    for path in (_ROOT / "tortie").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".pyc", ".j2"):
            yield Entry(f"{_PACKAGES}/{path.relative_to(_ROOT)}", source=path)


def _distributions() -> dict[str, list[list[str]]]:
    """Distribution -> what it needs, in the form of closure(); extras are left out."""
    found = {}
    for one in metadata.distributions():
        needs = [need for need in one.requires or [] if "extra ==" not in need]
        found[_normal(one.name)] = [[_normal(re.split(r"[^A-Za-z0-9_.-]", need)[0])] for need in needs]
    return found


def _normal(name: str) -> str:
    """One spelling of those that mean the same distribution (Python packaging: name normalisation)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _programs() -> Iterator[Entry]:
    for point in metadata.distribution("tortie").entry_points:
        lines = ["#!/usr/bin/python3", "import sys", f"from {point.module} import {point.attr}"]
        lines += [f"sys.exit({point.attr}())", ""]
        yield Entry(f"usr/bin/{point.name}", text="\n".join(lines))
    shim = _ROOT / "build" / "cni" / "calico"
    if not shim.exists():
        raise ConfigError("shim", str(shim), "is missing: run ./dev build first")
    yield Entry("opt/cni/bin/calico", source=shim)
    dockerfile = _DOCKERFILE.read_text()
    for plugin in words_of(dockerfile, "plugin"):
        yield Entry(f"opt/cni/bin/{plugin}", source=Path("/usr/lib/cni", plugin))
    for target, name in re.findall(r"ln -s (\S+) (\S+)", dockerfile):
        yield Entry(f"opt/cni/bin/{name}", link=target)
