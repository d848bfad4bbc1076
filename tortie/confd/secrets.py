"""Passwords of sessions: files that stand for Secrets, as Kubernetes mounts them: `<folder>/<secret>/<key>`.

With etcd alone there is no store for secrets, and a node's administrator puts the files there; in a pod
a Secret is mounted at `<folder>/<its name>`. The content is the password, without a newline at its end.

Names come from the datastore, where anybody who may write a BGPPeer writes them: only plain names are
looked up, so that none can lead out of the folder. Thin edge; what is said about a missing or wrong
password is context.py's.
"""

import os
import re
from collections.abc import Iterator, Mapping

from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.meta import SecretKeyRef

FOLDER = "/etc/calico/secrets"
FOLDER_VARIABLE = "TORTIE_SECRETS_DIR"
_PLAIN = re.compile(r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}")  # Kubernetes' alphabet of names and keys
_LONGEST = 4096  # bytes read; passwords are shorter, and context.py says so of a longer one


def folder(environment: Mapping[str, str]) -> str:
    return environment.get(FOLDER_VARIABLE) or FOLDER


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
                found[secret, key] = file.read(_LONGEST).removesuffix(b"\n").removesuffix(b"\r")
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
