"""Passwords of sessions: from files that stand for Secrets, else from the Secrets themselves.

A file is `<folder>/<secret>/<key>`, as Kubernetes mounts it. With etcd alone there is no store for secrets,
and a node's administrator puts the files there; in a pod a Secret is mounted at `<folder>/<its name>`.
Only a Secret that has no file is asked of the API, in the namespace that calico-node runs in. The content
is the password, without a newline at its end.

Names come from the datastore, where anybody who may write a BGPPeer writes them: only plain names are
looked up, so that none can lead out of the folder. Thin edge; what is said about a missing or wrong
password is context.py's.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tortie.confd.snapshot import Snapshot
from tortie.datastore.keys import Key
from tortie.datastore.nativekeys import SecretKey, SecretList
from tortie.datastore.types.meta import SecretKeyRef

FOLDER = "/etc/calico/secrets"
FOLDER_VARIABLE = "TORTIE_SECRETS_DIR"
_PLAIN = re.compile(r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}")  # Kubernetes' alphabet of names and keys
_LONGEST = 4096  # bytes read; passwords are shorter, and context.py says so of a longer one


def folder(environment: Mapping[str, str]) -> str:
    return environment.get(FOLDER_VARIABLE) or FOLDER


def namespace(environment: Mapping[str, str]) -> str:
    """Where Secrets are looked for, as Calico does."""
    return environment.get("NAMESPACE") or "kube-system"


def wanted(snapshot: Snapshot, files: Mapping[tuple[str, str], bytes], where: str) -> set[SecretList]:
    """Secrets to ask for in the namespace `where`: those that are named and are not all in files."""
    return {
        SecretList(where, secret)
        for secret, key in set(_named(snapshot)) - files.keys()
        if _PLAIN.fullmatch(secret)
    }


def of_api(objects: Iterable[tuple[Key, Any]]) -> dict[tuple[str, str], bytes]:
    """(Secret, key) -> password, of the Secrets among these."""
    return {
        (name.name, key): _stripped(value)
        for name, found in objects
        if isinstance(name, SecretKey)
        for key, value in found.data.items()
    }


def _stripped(content: bytes) -> bytes:
    return content.removesuffix(b"\n").removesuffix(b"\r")


def read(snapshot: Snapshot, where: str, problems: list[str]) -> dict[tuple[str, str], bytes]:
    """(Secret, key) -> password, of those that the snapshot names and that are there."""
    found = {}
    for secret, key in sorted(set(_named(snapshot))):
        if not (_PLAIN.fullmatch(secret) and _PLAIN.fullmatch(key)):
            problems.append(f"secret {secret!r}, key {key!r}: not a plain name")
            continue
        path = os.path.join(where, secret, key)
        try:
            with open(path, "rb") as file:
                found[secret, key] = _stripped(file.read(_LONGEST))
        except FileNotFoundError:
            continue  # context.py says of which session
        except OSError as err:
            problems.append(f"password in {path} cannot be read: {err.strerror}")
    return found


def _named(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    for peer in snapshot.peers.values():
        if peer.spec.password:
            yield from _pair(peer.spec.password.secretKeyRef)
    for configuration in snapshot.bgp.values():
        if configuration.spec.nodeMeshPassword:
            yield from _pair(configuration.spec.nodeMeshPassword.secretKeyRef)


def _pair(reference: SecretKeyRef | None) -> Iterator[tuple[str, str]]:
    if reference is not None:
        yield reference.name, reference.key
