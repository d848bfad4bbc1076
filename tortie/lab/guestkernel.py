"""Kernels for the lab's guests: Debian's, fetched once and not installed.

A package is downloaded with apt, unpacked, and kept in the user's cache, keyed by version. It is the same on
every system: what `debian-archive` beside this file gives, not what the machine itself has.

`python -m tortie.lab.guestkernel` fetches those that are missing, which needs the network.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tortie.core.errors import TortieError
from tortie.lab.box import LabError

_ARCHIVE = Path(__file__).with_name("debian-archive")


class Flavour(Enum):
    """The folder's prefix in the cache, what apt is asked for, and the image's name in the package."""

    CLOUD = (
        "guest",
        "linux-image-cloud-amd64",
        "vmlinuz-*",
    )  # the first depends on the current kernel's package
    USER_MODE = ("guest-usermode", "user-mode-linux", "linux.uml")


@dataclass(frozen=True, slots=True)
class Kernel:
    """`folder` has the image and lib/modules/VERSION."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "image"

    @property
    def modules(self) -> Path:
        return self.folder / "lib/modules"

    @property
    def version(self) -> str:
        return next(self.modules.iterdir()).name

    def module_files(self, *names: str) -> list[Path]:
        """Files of modules, each after those that it needs."""
        command = ["modprobe", "-d", str(self.folder), "-S", self.version, "-a", "--show-depends", *names]
        lines = [line.split() for line in _run(*command).splitlines()]
        return [Path(path) for path in dict.fromkeys(words[1] for words in lines if words[0] == "insmod")]


def cached(flavour: Flavour) -> Kernel | None:
    """The newest kernel of the cache."""
    found = sorted(_cache().glob(f"{flavour.value[0]}-[0-9]*"), key=_in_order)
    return Kernel(found[-1]) if found else None


def fetched(flavour: Flavour) -> Kernel:
    """The cache's kernel, downloaded if there is none. Raises LabError if that cannot be."""
    if (kernel := cached(flavour)) is not None:
        return kernel
    prefix, name, image = flavour.value
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=".guest") as folder:
        work, made = Path(folder), Path(folder, "made")
        _run(str(_ARCHIVE), folder)
        _run("apt-get", "-qq", "download", _package(name, work), folder=work)
        (download,) = work.glob("*.deb")
        _run("dpkg-deb", "-x", str(download), str(work / "all"))
        modules = next(work.glob("all/**/modules.builtin")).parent
        (made / "lib/modules").mkdir(parents=True)
        shutil.move(next(work.glob(f"all/**/{image}")), made / "image")
        shutil.move(modules, made / "lib/modules")
        _run("depmod", "-b", str(made), modules.name)
        target = _cache() / f"{prefix}-{download.name.split('_')[1]}"
        made.rename(target)
    return Kernel(target)


def _package(name: str, work: Path) -> str:
    """The name of the package that has the kernel: this one, or the one that it depends on."""
    depends = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", name, folder=work))
    return depends[1] if depends else name


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tortie"


def _in_order(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _run(*argv: str, folder: Path | None = None) -> str:
    """Its output; apt sees Debian's archive as it was made in `folder`. Raises LabError with its words."""
    environment = {**os.environ, "APT_CONFIG": f"{folder}/apt.conf"} if folder else None
    result = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"{' '.join(argv)} failed ({result.returncode}): {result.stderr.strip()}")
    return result.stdout


def main() -> int:
    try:
        for flavour in Flavour:
            if cached(flavour) is None:
                print(
                    f"\033[1m==> kernel of the tests' guest: {flavour.value[1]} (once)\033[0m",
                    file=sys.stderr,
                )
                fetched(flavour)
    except TortieError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
