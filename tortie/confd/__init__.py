"""From the datastore to the files that ExaBGP and the BGP agent, or BIRD, run from.

The face: `daemon.main()`, the process that node supervision runs.

Pure parts: `snapshot` (what is stored, as far as it matters here), `cluster` (nodes and settings made
from it), `sessions` and `bgppeer` (who peers with whom), `context` (all a template needs), `render` (text).
The edges: `daemon` (watch, render), `files` and `bird` (check with the speaker's own parser, replace,
tell it).
"""
