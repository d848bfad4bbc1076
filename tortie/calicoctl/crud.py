"""The commands over resources: get, create, apply, replace, delete, patch and validate."""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import structs

from tortie.calicoctl import kinds, operations, outcome, output, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, InvalidFile, Refusal
from tortie.calicoctl.listing import Listing
from tortie.calicoctl.session import Session
from tortie.core.errors import (
    DatastoreError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
)
from tortie.datastore import validate as validation
from tortie.datastore.client import Client
from tortie.datastore.types.bgp import BGPConfiguration
from tortie.datastore.types.meta import ObjectMeta, Resource

_DEFAULT_AS = "64512"  # of a cluster that names none

Operation = Callable[[Client, Resource], Awaitable[object]]


# --- what a command line is about -----------------------------------------------------------------


def _wanted(call: Call) -> list[Resource]:
    """The resources of the file, or those named on the command line; without a name: all of the kind."""
    if path := call.flags["filename"]:
        from tortie.calicoctl import manifest  # most calls of `get` read no file

        recursive, skip_empty = call.flags["recursive"], call.flags["skip-empty"]
        return manifest.read(manifest.Source(path, call.stdin, recursive, skip_empty))
    if not call.words:
        raise CommandError("no resources specified: give a file with -f, or a kind")
    kind = kinds.by_alias(call.words[0])
    names = call.words[1:] or [""]
    namespace = call.flags["namespace"] if kind.namespaced else ""
    return [kind.type(metadata=ObjectMeta(name=name, namespace=namespace)) for name in names]


def _checked_names(call: Call, resources: list[Resource]) -> list[Resource]:
    if any(not name for name in call.words[1:]):
        raise CommandError("resource name may not be empty")
    return resources


def _single_kind(call: Call, resources: Sequence[Resource]) -> str:
    return resources[0].KIND if resources and not call.flags.get("filename") else ""


# --- commands that write --------------------------------------------------------------------------


def create(call: Call) -> None:
    _write(call, "create", operations.create, skip=ResourceAlreadyExists if call.flags["skip-exists"] else ())


def apply(call: Call) -> None:
    _write(call, "apply", operations.apply)


def replace(call: Call) -> None:
    _write(call, "replace", operations.replace)


def delete(call: Call) -> None:
    skip = ResourceDoesNotExist if call.flags["skip-not-exists"] else ()
    _write(call, "delete", operations.delete, skip=skip)


def _write(call: Call, verb: str, operation: Operation, skip: type[TortieError] | tuple[()] = ()) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        resources = _wanted(call)
        if not resources:
            call.out("No resources specified\n")
            return
        client = current.client()
        if verb != "delete":
            await _initialise(client)
        result = outcome.of(_checked_names(call, resources), _single_kind(call, resources))
        for resource in resources:
            try:
                resource = operations.in_namespace(resource, call.flags["namespace"], False)
                await operation(client, resource)
                result.handled += 1
                if verb != "delete":
                    _warn_of(call, current, resource)
            except skip:
                result.handled += 1
            except TortieError as err:
                result.errors.append(err)
        _tell(current.tell_done, verb, result)

    session.run(call, work)


def _warn_of(call: Call, current: Session, written: Resource) -> None:
    """Of what is stored and has no effect."""
    if written.KIND == "IPAMConfiguration" and current.datastore_type == "etcdv3":
        # Calico's allocator reads an object of its own in etcd, and so does ours.
        call.err("Warning: with etcd an IPAMConfiguration has no effect, use calicoctl ipam configure")


def _tell(out: Callable[[str], None], verb: str, result: outcome.Outcome) -> None:
    if verb == "delete":
        text, error = outcome.deleted(result)
    elif verb == "replace":
        text, error = outcome.replaced(result)
    else:
        text, error = outcome.written(result, verb)
    out(text)
    if error is not None:
        raise error


async def _initialise(client: Client) -> None:
    """A datastore that nothing has used yet gets its first objects; who may not write them goes on."""
    from tortie.datastore import initialize

    try:
        await initialize.ensure_initialized(client, "", "")
    except DatastoreError:
        return


def validate(call: Call) -> None:
    resources = _checked_names(call, _wanted(call))
    if not resources:
        call.out("No resources specified\n")
        return
    result = outcome.of(resources, _single_kind(call, resources))
    for resource in resources:
        try:
            resource = operations.in_namespace(resource, call.flags["namespace"], False)
            validation.check(validation.with_defaults(resource))
            result.handled += 1
        except TortieError as err:
            result.errors.append(err)
    _tell(call.out, "validate", result)


def patch(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        (resource,) = _checked_names(call, named(call))
        client = current.client()
        try:
            resource = operations.in_namespace(resource, call.flags["namespace"], False)
            await operations.patch(client, resource, call.flags["patch"])
        except TortieError as err:
            raise CommandError(f"hit error: {err}") from err
        _warn_of(call, current, resource)
        current.tell_done(f"Successfully patched 1 '{resource.KIND}' resource\n")

    session.run(call, work)


def named(call: Call) -> list[Resource]:
    """The one resource that KIND NAME name."""
    kind = kinds.by_alias(call.words[0])
    namespace = call.flags["namespace"] if kind.namespaced else ""
    return [kind.type(metadata=ObjectMeta(name=call.words[1], namespace=namespace))]


# --- get ------------------------------------------------------------------------------------------


def get(call: Call) -> None:
    form = output.parse_format(call.flags["output"], _read_template)
    everywhere = call.flags["all-namespaces"] or call.flags["all-namespaces-a"]

    async def work(current: Session) -> None:
        try:
            await current.check_version()
            resources = _wanted(call)
            client = current.client()
            _checked_names(call, resources)
        except (InvalidFile, Refusal):
            raise
        except CommandError as err:
            raise CommandError(f"failed to get resources: {err}") from err
        results: list[output.Result] = []
        errors: list[TortieError] = []
        for resource in resources:
            try:
                resource = operations.in_namespace(resource, call.flags["namespace"], everywhere)
                results.append(await _read(call, client, resource))
            except TortieError as err:
                errors.append(err)
        if call.flags["export"] and call.words[1:]:
            results = [_exported(result) for result in results if not isinstance(result, Listing)]
        cluster_as = await _cluster_as(client) if output.needs_cluster_as(form, results) else ""
        with_namespace = bool(everywhere or call.flags["namespace"])
        call.out(output.render(form, results, with_namespace=with_namespace, cluster_as=cluster_as))
        if errors:
            raise CommandError("\n".join(map(str, errors)))

    session.run(call, work)


def _read_template(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as source:
            return source.read()
    except OSError as err:
        raise CommandError(f"open {path}: {(err.strerror or '').lower()}") from err
    except UnicodeDecodeError as err:
        raise CommandError(f"open {path}: not UTF-8 text") from err


async def _read(call: Call, client: Client, resource: Resource) -> output.Result:
    """One resource, or without a name all of its kind; what cannot be read is told and left out."""
    kind, meta = type(resource), resource.metadata
    if meta.name:
        if kinds.of(resource).namespaced and not meta.namespace:
            raise CommandError("cannot use --all-namespace flag for getting a single resource")
        return await client.get(kind, meta.name, meta.namespace)
    page = await client.list(kind, meta.namespace)
    for broken in page.broken:
        call.err(f"Warning: {broken.where} cannot be read: {broken.error}")
    items: list[Resource] = page.items
    if kind.KIND == "Tier":  # by order; those without one come last
        items = sorted(items, key=_tier_order)
    return Listing(kind.KIND, tuple(items), page.revision)


def _tier_order(tier: Resource) -> tuple[bool, float]:
    order = getattr(tier, "spec").order  # noqa: B009 - the list is typed for all kinds
    return (order is None, order or 0)


def _exported(resource: Resource) -> Resource:
    return structs.replace(
        resource,
        metadata=structs.replace(
            resource.metadata,
            namespace="",
            uid="",
            resourceVersion="",
            creationTimestamp=None,
            deletionTimestamp=None,
            deletionGracePeriodSeconds=None,
        ),
    )


async def _cluster_as(client: Client) -> str:
    try:
        configuration = await client.get(BGPConfiguration, "default")
    except ResourceDoesNotExist:
        return _DEFAULT_AS
    except DatastoreError:
        return "unknown"
    return str(int(configuration.spec.asNumber)) if configuration.spec.asNumber else _DEFAULT_AS
