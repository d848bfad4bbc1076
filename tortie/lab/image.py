"""Container images without a builder or a registry: one layer, in the archive that runtimes import.

(Docker image specification 1.2: manifest.json, a configuration, and the layers' tar files.)
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """A path of the image, and what is there: a file of this machine, a text, or where a link leads."""

    path: str  # without the leading slash
    source: Path | None = None
    text: str | None = None
    link: str = ""
    mode: int = 0o755  # of a text


def write(
    target: Path, name: str, entries: Iterable[Entry], command: Sequence[str], env: Mapping[str, str]
) -> int:
    """Make the archive of image `name`; returns the bytes of its files."""
    layer = target.with_suffix(".layer")
    size = _write_layer(layer, entries)
    digest = hashlib.sha256()
    with layer.open("rb") as source:
        while part := source.read(1 << 20):
            digest.update(part)
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Cmd": list(command), "Env": [f"{key}={value}" for key, value in env.items()]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        for member, content in (("manifest.json", manifest), ("config.json", config)):
            _add_bytes(archive, member, json.dumps(content).encode(), 0o644)
        archive.add(layer, "layer.tar")
    layer.unlink()
    return size


def _write_layer(path: Path, entries: Iterable[Entry]) -> int:
    size = 0
    with tarfile.open(path, "w") as archive:
        for entry in sorted(entries, key=lambda one: one.path):
            if entry.text is not None:
                _add_bytes(archive, entry.path, entry.text.encode(), entry.mode)
            elif entry.link:
                member = tarfile.TarInfo(entry.path)
                member.type, member.linkname = tarfile.SYMTYPE, entry.link
                archive.addfile(member)
            elif entry.source is not None:
                size += _add_file(archive, entry.path, entry.source)
    return size


def _add_file(archive: tarfile.TarFile, path: str, source: Path) -> int:
    """As it is, its time too: Python's compiled files count only beside sources of the same time."""
    member = archive.gettarinfo(source, path)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = int(member.mtime)
    if member.islnk():  # a second name in the same archive: kept as a file of its own
        member.type, member.linkname = tarfile.REGTYPE, ""
        member.size = source.stat().st_size
    if not member.isreg():
        archive.addfile(member)
        return 0
    owners = member.mode & 0o500
    member.mode |= owners >> 3 | owners >> 6  # the controllers are not root
    with source.open("rb") as content:
        archive.addfile(member, content)
    return member.size


def _add_bytes(archive: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
