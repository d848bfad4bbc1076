"""Cluster-wide controllers, one process in a cluster: what Calico's kube-controllers does.

The face:
- `main.main`: `kube-controllers`, and its probe.
- `settings.resolve`: environment and KubeControllersConfiguration as one set of settings (pure).
- Decisions, all pure: `leaks` (addresses nobody uses), `emptyblocks`, `hostendpoints`, `labels`,
  `copies` (Kubernetes' objects in etcd), `services` (addresses of load balancers), `election`, `metrics`.
- Edges: `feed` (what is, kept current), `rounds` (when to look), `garbage`, `nodes`, `mirror`,
  `loadbalancer`, `configuration`, `leader`, `health`.

Every controller is a round: it looks at all there is, and makes it what it should be. Rounds are run when
something changed, when something is due, and from time to time; a failed one is run again. So a restart, an
outage and a lost event are all the same: the next round.
"""
