"""What an API server is asked for, what a role grants, and what is refused without one of its verbs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tests.support.etcd import wait_until
from tests.support.kubernetes import ApiServer
from tortie.datastore.kubernetes.http import HttpClient
from tortie.lab.apiserver import REGISTRY, birth

RBAC = "/apis/rbac.authorization.k8s.io/v1"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_AT_ONCE = 100  # keys in a transaction of etcd
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Grant(NamedTuple):
    """In the words of RBAC; `resource` may have a part, as pods/status."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


class Asked(NamedTuple):
    """What one request was about."""

    namespace: str = ""
    name: str = ""


def spy(monkeypatch: pytest.MonkeyPatch, token: str = "") -> dict[Grant, Asked]:
    """What is asked for from now on, first and last; with a token only by who shows it."""
    found: dict[Grant, Asked] = {}
    call, stream = HttpClient.call, HttpClient.stream

    def note(method: str, target: str, headers: Mapping[str, str]) -> None:
        whose = not token or headers.get("Authorization") == f"Bearer {token}"
        if whose and target.count("/") > 2:  # else which versions there are: anybody known may ask
            grant, asked = _understood(method, target)
            found[grant] = asked

    async def spied_call(
        self: HttpClient, method: str, target: str, headers: Mapping[str, str], *more: Any
    ) -> Any:
        note(method, target, headers)
        return await call(self, method, target, headers, *more)

    @asynccontextmanager
    async def spied_stream(self: HttpClient, target: str, headers: Mapping[str, str]) -> Any:
        note("WATCH", target, headers)
        async with stream(self, target, headers) as opened:
            yield opened

    monkeypatch.setattr(HttpClient, "call", spied_call)
    monkeypatch.setattr(HttpClient, "stream", spied_stream)
    return found


def _understood(method: str, target: str) -> tuple[Grant, Asked]:
    root, *parts = target.partition("?")[0].strip("/").split("/")
    group = "" if root == "api" else parts.pop(0)
    parts.pop(0)  # the version
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    reading = "watch" if method == "WATCH" else "get" if len(parts) > 1 else "list"
    grant = Grant(group, "/".join(parts[::2]), _VERBS.get(method, reading))
    return grant, Asked(namespace, parts[1] if len(parts) > 1 else "")


def granted(role: Mapping[str, Any]) -> set[Grant]:
    return {
        Grant(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


# --- without one ----------------------------------------------------------------------------------


def without(role: Mapping[str, Any], grant: Grant) -> list[dict[str, Any]]:
    """The role's rules but for one verb of one resource."""
    found = []
    for rule in role["rules"]:
        if grant.group in rule["apiGroups"] and grant.resource in rule["resources"]:
            others = [one for one in rule["resources"] if one != grant.resource]
            verbs = [one for one in rule["verbs"] if one != grant.verb]
            found += [{**rule, "resources": others}, {**rule, "resources": [grant.resource], "verbs": verbs}]
        else:
            found.append(rule)
    return [rule for rule in found if rule["resources"] and rule["verbs"]]


def users_without(server: ApiServer, roles: Sequence[Mapping[str, Any]]) -> dict[Grant, str]:
    """Each verb of the roles -> a user who may do all that they grant together, but that.

    Put there past the server: two hundred requests take their time. They stay.
    """
    every = sorted({grant for role in roles for grant in granted(role)})
    label = roles[0]["metadata"]["name"]
    users = {grant: f"{label}-without-{number}" for number, grant in enumerate(every)}
    stored: dict[str, str] = {}
    for grant, user in users.items():
        rules = [rule for role in roles for rule in without(role, grant)]
        group = "rbac.authorization.k8s.io"
        bound = {"roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
                 "subjects": [{"apiGroup": group, "kind": "User", "name": user}]}  # fmt: skip
        for kind, body in (("ClusterRole", {"rules": rules}), ("ClusterRoleBinding", bound)):
            about = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": user, **birth()}}
            stored[f"{REGISTRY}{kind.lower()}s/{user}"] = json.dumps({**about, **body})
    keys = list(stored)
    for start in range(0, len(keys), _AT_ONCE):
        server.etcd.put_all({key: stored[key] for key in keys[start : start + _AT_ONCE]})
    _await_known(server, users)
    return users


def _await_known(server: ApiServer, users: Mapping[Grant, str]) -> None:
    """The authorizer hears of roles a moment after they are stored."""
    known, last = list(users)[-2], list(users.values())[-1]  # the last ones name no object
    wait_until(lambda: may(server, last, known), what=f"{last} to be allowed to {known}")


def may(server: ApiServer, user: str, grant: Grant, asked: Asked = Asked()) -> bool:  # noqa: B008 - a value
    """What the server's own authorizer says."""
    resource, _, part = grant.resource.partition("/")
    about = {"group": grant.group, "resource": resource, "subresource": part, "verb": grant.verb}
    spec = {"user": user, "resourceAttributes": {**about, **asked._asdict()}}
    answer = server.ask("POST", REVIEWS, {"spec": spec})["status"]
    return bool(answer["allowed"])


def in_force(server: ApiServer, account: str, asked: Mapping[Grant, Asked]) -> list[bool]:
    """Of each whether this service account of kube-system may do it, which takes effect with a delay."""
    user = f"system:serviceaccount:kube-system:{account}"
    return [may(server, user, grant, about) for grant, about in asked.items()]


def no_secrets(server: ApiServer, account: str) -> bool:
    """Whether this service account of kube-system, which may do other things, can read no Secret at all."""
    user = f"system:serviceaccount:kube-system:{account}"
    reads = [Grant("", "secrets", verb) for verb in ("get", "list", "watch")]
    places = [Asked(), Asked("kube-system", "calico-etcd-secrets"), Asked("default", "x")]
    return may(server, user, Grant("", "pods", "list")) and not any(
        may(server, user, grant, place) for grant in reads for place in places
    )
