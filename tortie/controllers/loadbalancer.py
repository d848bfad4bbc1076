"""Addresses for Services of type LoadBalancer: assigned, told in the service's status, given back.

What a service holds is read from IPAM's blocks, by a handle that its UID is part of. Assigning is capped
to one address of each version for a handle, so that a round on a picture a moment old changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tortie.controllers import services
from tortie.controllers.feed import Feed
from tortie.controllers.garbage import allocations_of
from tortie.controllers.leaks import release_of
from tortie.controllers.services import Plan
from tortie.core.errors import (
    FieldError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    ValidationError,
)
from tortie.datastore.nativekeys import NamespaceKey, ServiceKey
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG
from tortie.datastore.types.service import Ingress, Service
from tortie.ipam import gotime
from tortie.ipam.allocator import Allocator
from tortie.ipam.audit import Allocation
from tortie.ipam.errors import IPAMError, TooManyConflicts
from tortie.ipam.names import LOAD_BALANCER_HOST, NAMESPACE, SERVICE, TIMESTAMP, TYPE, load_balancer_handle
from tortie.ipam.pools import LOAD_BALANCER, Pool
from tortie.ipam.requests import AssignAddress, AutoAssign
from tortie.ipam.view import facts_from

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

_log = logging.getLogger(__name__)

TOPICS = ("BlockKey", "IPPool")
_LOOK_AGAIN = 30.0  # seconds: a namespace's label or a reservation may help, and none of them makes a round
_ONE = 1  # address of each version that a service may hold


class LoadBalancers:
    """`ours` has the topics above, `native` ServiceKeys."""

    def __init__(
        self,
        allocator: Allocator,
        api: "KubernetesBackend",
        ours: Feed,
        native: Feed,
        assign: str,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`assign` is AllServices or RequestedServicesOnly; `clock` gives Unix time in ns."""
        self._allocator = allocator
        self._api = api
        self._ours = ours
        self._native = native
        self._assign = assign
        self._clock = clock
        self._told: dict[ServiceKey, str] = {}  # service -> why it has no address, as it was logged

    async def round(self) -> float | None:
        """Every service once, one that fails does not hinder the others.

        The loop's time at which one that IPAM refuses is due again. Raises the first failure that trying
        again at once may mend.
        """
        known, held = self._pools(), self._held()
        failure: TortieError | None = None
        due: float | None = None
        for key, service in list(self._native.of("ServiceKey").items()):
            mine = held.pop(handle_of(service), [])
            try:
                await self._serve(key, service, mine, known)
            except TortieError as err:
                self._complain(key, str(err))
                if _lasts(err):
                    due = asyncio.get_running_loop().time() + _LOOK_AGAIN
                else:
                    failure = failure or err
            else:
                self._told.pop(key, None)
        for handle, left in held.items():
            await self._clean_up(handle, left)
        self._told = {key: why for key, why in self._told.items() if key in self._native.of("ServiceKey")}
        if failure is not None:
            raise failure
        return due

    def _pools(self) -> list[Pool]:
        found = facts_from(DEFAULT_IPAM_CONFIG, list(self._ours.of("IPPool").values()), [])[0]
        return services.usable(found.pools)

    def _held(self) -> dict[str, list[Allocation]]:
        """Handle -> what it holds, of all services' handles."""
        held: dict[str, list[Allocation]] = {}
        stored = self._ours.of("BlockKey").values()
        for block in (one for one in stored if any(SERVICE in a.secondary for a in one.attributes)):
            for one in allocations_of(block):
                if one.known(SERVICE) and one.known(NAMESPACE) and not one.cooling:
                    held.setdefault(one.handle, []).append(one)
        return held

    def _complain(self, key: ServiceKey, why: str) -> None:
        if self._told.get(key) != why:
            _log.warning("%s: %s", key, why)
        self._told[key] = why

    # --- one service ----------------------------------------------------------------------------

    async def _serve(
        self, key: ServiceKey, service: Service, mine: Sequence[Allocation], known: Sequence[Pool]
    ) -> None:
        addresses = [one.address for one in mine]
        if not services.is_ours(service, self._assign):
            if mine:
                await self._release(mine)
                if service.spec.type == "LoadBalancer":
                    await self._tell(key, service, services.without(service, addresses))
            return
        plan = services.plan(service, addresses, known)
        await self._release([one for one in mine if one.address in plan.release])
        kept = [one for one in addresses if one not in plan.release]
        refusal: TortieError | None = None
        try:
            kept += await self._take(service, plan)
        except TortieError as err:
            refusal = err
        # What there is, is told even if the other family cannot be had. Where no pool is for load
        # balancers, somebody else may serve them.
        if kept or mine or known:
            await self._tell(key, service, services.ingress_of(kept))
        if refusal is not None:
            raise refusal
        if not kept and not known:
            reason = "no IPPool may be used for LoadBalancer: it gets no address"
            raise ValidationError([FieldError("Service.spec.type", service.spec.type, reason)])

    async def _take(self, service: Service, plan: Plan) -> list[str]:
        """What was assigned. Raises IPAMError, with nothing taken that is not told next time."""
        handle, attributes = handle_of(service), self._attributes(service)
        taken: list[str] = []
        for address in plan.take:
            await self._allocator.assign_ip(
                AssignAddress(
                    address,
                    handle=handle,
                    attributes=attributes,
                    host=LOAD_BALANCER_HOST,
                    use=LOAD_BALANCER,
                    cap=_ONE,
                )
            )
            taken.append(address)
        if not (plan.any4 or plan.any6):
            return taken
        answer = await self._allocator.auto_assign(
            AutoAssign(
                use=LOAD_BALANCER,
                num4=int(plan.any4),
                num6=int(plan.any6),
                handle=handle,
                attributes=attributes,
                pools4=plan.pools4,
                pools6=plan.pools6,
                host=LOAD_BALANCER_HOST,
                cap=_ONE,
                namespace_labels=await self._namespace_labels(service.metadata.namespace),
            )
        )
        for assigned in (answer.v4, answer.v6):
            taken += [one.partition("/")[0] for one in assigned.addresses] if assigned else []
        if not taken:
            answer.require_all()
        return taken

    async def _namespace_labels(self, namespace: str) -> Mapping[str, str]:
        found = await self._api.get(NamespaceKey(namespace))
        labels: Mapping[str, str] = found.value.metadata.labels
        return labels

    def _attributes(self, service: Service) -> dict[str, str]:
        return {
            SERVICE: service.metadata.name,
            NAMESPACE: service.metadata.namespace,
            TYPE: service.spec.type,
            TIMESTAMP: gotime.plain(self._clock()),
        }

    async def _tell(self, key: ServiceKey, service: Service, ingress: Sequence[Ingress]) -> None:
        if not services.says(service, ingress):
            await self._api.set_ingress(key, service.metadata.resourceVersion, ingress)
            _log.info("%s has %s", key, ", ".join(one.ip for one in ingress) or "no address any more")

    # --- giving back ----------------------------------------------------------------------------

    async def _release(self, given_back: Sequence[Allocation]) -> None:
        if not given_back:
            return
        outcome = await self._allocator.release_ips([release_of(one) for one in given_back])
        if outcome.error is not None:
            raise outcome.error
        _log.info("released %s", ", ".join(one.address for one in given_back))

    async def _clean_up(self, handle: str, left: Sequence[Allocation]) -> None:
        """What services hold that are gone; asked once more, for the picture may be older than the blocks."""
        key = ServiceKey(left[0].known(NAMESPACE), left[0].known(SERVICE))
        try:
            service = (await self._api.get(key)).value
        except ResourceDoesNotExist:
            service = None
        if service is None or handle_of(service) != handle:
            await self._release(left)


def _lasts(err: TortieError) -> bool:
    """Whether only a change helps, by a person or in IPAM."""
    refused = isinstance(err, ValidationError | ResourceAlreadyExists | IPAMError)
    return refused and not isinstance(err, TooManyConflicts)


def handle_of(service: Service) -> str:
    meta = service.metadata
    return load_balancer_handle(meta.name, meta.namespace, meta.uid)
