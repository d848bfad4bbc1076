"""What is asked of the allocator, and what it answers. Plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.core.errors import TortieError
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import AddressShortage


@dataclass(frozen=True, slots=True)
class AutoAssign:
    """Addresses of the allocator's choice.

    `use` is Workload, Tunnel or LoadBalancer; addresses of a LoadBalancer belong to the virtual owner
    named by `host`. `pools4`/`pools6` are pool CIDRs in order of preference; empty: whatever pools
    select the node and the namespace. `namespace_labels` None: no namespace is known.
    """

    use: str
    num4: int = 0
    num6: int = 0
    handle: str = ""  # groups the addresses for a later release; '' means none
    attributes: Mapping[str, str] = field(default_factory=dict)  # see names.py
    pools4: tuple[str, ...] = ()
    pools6: tuple[str, ...] = ()
    host: str = ""  # '': the allocator's own
    max_blocks: int = 0  # 0: only the global limit
    namespace_labels: Mapping[str, str] | None = None
    cap: int = 0  # addresses the handle may hold per IP version; 0: any number


@dataclass(frozen=True, slots=True)
class AssignAddress:
    """One particular address. With `use` the pool must allow it; a `cap` makes a repetition succeed."""

    address: str
    handle: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    use: str = ""
    cap: int = 0


@dataclass(frozen=True, slots=True)
class Assigned:
    """What one IP version of an AutoAssign came to.

    `addresses` carry the prefix length of their block (`10.0.0.5/26`); addresses that the handle held
    already carry /32 or /128. A shortfall is no error: `notes` say why.
    """

    version: int
    requested: int
    addresses: tuple[str, ...]
    notes: tuple[str, ...] = ()
    counted: int = 0  # all addresses that the handle counted after the last write; 0: not known

    @property
    def shortage(self) -> str:
        """Why there are fewer addresses than asked for, in Calico's words; '' if there are not."""
        if len(self.addresses) >= self.requested:
            return ""
        text = f"Assigned {len(self.addresses)} out of {self.requested} requested IPv{self.version} addresses"
        return "; ".join([text, *self.notes])


@dataclass(frozen=True, slots=True)
class AutoAssigned:
    """The answer to an AutoAssign; a version that was not asked for, or not reached, is None.

    `error` is why it stopped early. Addresses assigned until then are in v4 and v6 and stay assigned:
    whoever does not want a part gives it back, best by handle.
    """

    v4: Assigned | None = None
    v6: Assigned | None = None
    error: TortieError | None = None

    def require_all(self) -> None:
        """Raise the error, or AddressShortage with the notes, unless every address was assigned."""
        if self.error is not None:
            raise self.error
        for assigned in (self.v4, self.v6):
            if assigned is not None and assigned.shortage:
                raise AddressShortage(assigned.shortage)


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """The answer to a release of addresses: blocks succeed and fail one by one.

    `unallocated` were free or cooling already; `done` are the requests that met no error; `error` is the
    first one met.
    """

    unallocated: tuple[str, ...] = ()
    done: tuple[ReleaseRequest, ...] = ()
    error: TortieError | None = None
