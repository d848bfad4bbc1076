"""From the datastore to the files that ExaBGP and the BGP agent run from.

The face: `daemon.main()`, the process that node supervision runs.

Pure parts: `snapshot` (what is stored, as far as it matters here), `cluster` (nodes and settings made
from it), `peering` (who peers with whom), `context` (all a template needs), `render` (text).
The edge: `daemon` (watch, check with ExaBGP's own parser, replace, tell the agent).
"""
