"""What the allocator refuses, in Calico's words: the texts reach kubelet's events and calicoctl's users.

(Reference: Calico IPAM, sections 2.2-2.8; libcalico-go/lib/ipam/ipam_errors.go.) All are TortieErrors;
the guards of a release are update conflicts, because that is what a caller must treat them as.
"""

from tortie.core.errors import TortieError, UpdateConflict


class IPAMError(TortieError):
    """The allocator cannot or must not do what was asked; nothing is wrong with the datastore."""


class BlockLimitReached(IPAMError):
    def __init__(self) -> None:
        super().__init__("cannot allocate new block due to per host block limit")


class NoFreeBlocks(IPAMError):
    def __init__(self) -> None:
        super().__init__("No Free Blocks")


class NoBlockToUse(IPAMError):
    """Own blocks are full and autoAllocateBlocks is off."""

    def __init__(self) -> None:
        super().__init__("failed to find or claim a block")


class BlockClaimConflict(IPAMError):
    """The block is somebody else's."""

    def __init__(self, cidr: str, affinity: str | None) -> None:
        super().__init__(f"{cidr} already claimed" + (f" by {affinity}" if affinity else ""))
        self.cidr, self.affinity = cidr, affinity


class ForeignBlock(IPAMError):
    """Strict affinity keeps a block to its owner, and from everybody if it has none."""

    def __init__(self, cidr: str, affinity: str | None) -> None:
        super().__init__(
            "Block host affinity does not match"
            if affinity is not None
            else f"Attempt to assign from block {cidr} with no affinity"
        )
        self.cidr, self.affinity = cidr, affinity


class BlockNotEmpty(IPAMError):
    def __init__(self, cidr: str) -> None:
        super().__init__(f"block '{cidr}' is not empty")


class BlockChanged(IPAMError):
    def __init__(self) -> None:
        super().__init__("IPAM block updated since we last read it")


class StaleAffinity(IPAMError):
    """An affinity pointed at a block that belongs to somebody else, or to nobody; it has been deleted."""

    def __init__(self, what: object) -> None:
        super().__init__(f"Affinity is stale: {what}")


class TooManyConflicts(IPAMError):
    def __init__(self) -> None:
        super().__init__("Max retries hit - excessive concurrent IPAM requests")


class InCooldown(IPAMError):
    def __init__(self, address: str) -> None:
        super().__init__(f"address {address} is in cooldown")


class HandleFull(IPAMError):
    """The handle already has as many addresses of this version as its owner may have."""

    def __init__(self, handle: str, count: int, cap: int) -> None:
        super().__init__(
            f"handle {handle} already has {count} allocation(s), cannot allocate more (maxAlloc={cap})"
        )


class AddressShortage(IPAMError):
    """Fewer addresses than asked for, with the reasons."""


class BadSequenceNumber(UpdateConflict):
    """The address was released, or released and given out again, since the caller looked."""

    def __init__(self, address: str, requested: int, stored: int) -> None:
        super().__init__(
            f"{address}: the given sequence number ({requested}) does not match ({stored}) "
            "when attempting to release IP"
        )


class BadHandle(UpdateConflict):
    """The address belongs to another handle than the caller believes."""

    def __init__(self, address: str, requested: str, stored: str) -> None:
        super().__init__(
            f"{address}: the given handle ({requested}) does not match ({stored}) "
            "when attempting to release IP"
        )


class OwnerMismatch(UpdateConflict):
    """The address's owner attributes name another pod than the caller believes."""
