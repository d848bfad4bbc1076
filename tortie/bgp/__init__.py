"""The routing side of a node: what ExaBGP receives becomes a table, kernel routes and announcements.

Knows no datastore: like BIRD it runs from rendered files and keeps routing when the datastore is gone.

The face:
- `exabgp`: the process that node supervision runs (`exabgp.argv()`); it starts the agent.
- `agent.main()`: ExaBGP's helper, one asyncio loop that ties the parts below together.
- `config`: bgp.json, which confd writes and the agent reads (`core.paths`: where).
- `status`: bgp-status.json, which the agent writes; `status.read()` for calicoctl and readiness.

Pure parts: `prefix`, `route` (values), `rib`, `bestpath`, `policy`, `outbox`, `graceful`, `nexthop`, `fib`,
`events` and `commands` (ExaBGP's language in both directions). Edges: `speaker` (the two pipes),
`kernel` (routes and what is known of interfaces).
"""
