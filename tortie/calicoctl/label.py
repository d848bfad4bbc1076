"""`label`: one label of one resource, set or removed."""

from tortie.calicoctl import crud, operations, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, Refusal
from tortie.calicoctl.session import Session
from tortie.core.errors import TortieError


def label(call: Call) -> None:
    kind, name, text = call.words[:3]
    remove = call.flags["remove"]
    key, equals, value = (text, "", "") if remove else text.partition("=")
    if not remove and not equals:
        raise CommandError(f"invalid label {text}")

    async def work(current: Session) -> None:
        try:
            await current.check_version()
            (resource,) = crud.named(call)
        except Refusal:
            raise
        except CommandError as err:
            raise CommandError(f"failed to get {kind} {name}, error {err}") from err
        client = current.client()
        try:
            resource = operations.in_namespace(resource, call.flags["namespace"], False)
            meta = resource.metadata
            stored = await client.get(type(resource), meta.name, meta.namespace)
        except TortieError as err:
            raise CommandError(f"{kind} {name} not found") from err
        labels, done = _changed(dict(stored.metadata.labels), key, value, remove, call)
        try:
            await operations.replace(client, stored.with_metadata(labels=labels))
        except TortieError as err:
            raise CommandError(f"failed to update {kind} {name}, label not changed") from err
        current.tell_done(f"Successfully {done} {kind} {name}\n")

    session.run(call, work)


def _changed(
    labels: dict[str, str], key: str, value: str, remove: bool, call: Call
) -> tuple[dict[str, str], str]:
    """The new labels, and what was done to them in words. Raises CommandError."""
    kind, name = call.words[:2]
    if remove:
        if key not in labels:
            raise CommandError(f"cannot remove label of {kind} {name}, key {key} does not exist")
        del labels[key]
        return labels, f"removed label {key} from"
    if key not in labels:
        return {**labels, key: value}, f"set label {key} on"
    if not call.flags["overwrite"] and labels[key] != value:
        raise CommandError(
            f"failed to update label of {kind} {name}, key {key} is already present. "
            "please use '--overwrite' to set a new value"
        )
    return {**labels, key: value}, f"updated label {key} on"
