"""Changing the allocator's configuration. (Reference: Calico IPAM, 1.7.)"""

from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.backend import KV, Backend
from tortie.datastore.keys import IPAMConfigKey
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig
from tortie.ipam.errors import IPAMError

_LONGEST_COOLDOWN = 1200  # seconds, Calico's bound


def check_config(config: IPAMConfig) -> None:
    """Raises IPAMError if the settings contradict each other or are out of range."""
    if not config.strict_affinity and not config.auto_allocate_blocks:
        raise IPAMError("Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time")
    if config.maxBlocksPerHost > 0 and not config.strict_affinity:
        raise IPAMError("MaxBlocksPerHost requires StrictAffinity to be enabled")
    if config.maxBlocksPerHost < 0:
        raise IPAMError(f"MaxBlocksPerHost = {config.maxBlocksPerHost}: must not be negative")
    if not 0 <= config.ipCooldownSeconds <= _LONGEST_COOLDOWN:
        raise IPAMError(f"IPCooldownSeconds = {config.ipCooldownSeconds}: must be 0-{_LONGEST_COOLDOWN}")
    if (persistence := config.kubeVirtVMAddressPersistence) not in ("", "Enabled", "Disabled"):
        raise IPAMError(f"KubeVirtVMAddressPersistence = {persistence}: must be Enabled or Disabled")


async def set_config(backend: Backend, config: IPAMConfig) -> None:
    """Store a configuration; one that is in force already is not written.

    What is allocated is not touched. Raises IPAMError, UpdateConflict if somebody else changes it too.
    """
    try:
        stored: KV | None = await backend.get(IPAMConfigKey())
    except ResourceDoesNotExist:
        stored = None
    if config == (stored.value if stored is not None else DEFAULT_IPAM_CONFIG):
        return
    check_config(config)
    if stored is None:
        await backend.create(IPAMConfigKey(), config)
    else:
        await backend.update(KV(stored.key, config, stored.revision, stored.origin))
