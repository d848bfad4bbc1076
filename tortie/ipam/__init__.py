"""Addresses for pods: who gets which, across all nodes, with nothing but compare-and-swap.

The face:
- `allocator.Allocator`: assign and release addresses, claim and release blocks, configuration, reports.
- `requests`: what is asked and answered (AutoAssign, AssignAddress, AutoAssigned, ReleaseOutcome);
  `block`: Owner, ReleaseRequest; `owners`: OwnerChange, PodOwner.
- `view`: where the allocator knows pools and configuration from: DirectView, SyncedView.
- `cluster`: delete_pool, delete_node. `tunnels`: the addresses of a node's tunnel devices.
- `names`: attribute keys and handle IDs. `pools.resolve`: pool names of annotations.
- `soundness.violations`, `utilisation`: for `calicoctl ipam check` and `show`.

A pool is cut into blocks; a block belongs to one node, which announces it and hands out its addresses.
Reference: Calico IPAM (libcalico-go/lib/ipam); the data are the same, so both can work side by side.
"""
