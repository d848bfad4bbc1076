"""Felix's parameters: one table, from which everything that reads or checks them is derived.

The face:
- `PARAMS`, `BY_FIELD`: the table, by parameter name and by FelixConfiguration field.
- `from_environment(environ)`, `from_file(text)`: raw values of the local sources;
  `datastore_layers(configurations, hostname, node, information)`: those of the datastore.
- `resolve({Source.ENVIRONMENT: …, Source.FILE: …, **datastore_layers(…)}, hostname) -> Resolved`: the
  parsed value of every parameter with its source. Raises ConfigError for what Felix must not start with.
  `resolve_stored(local, stored, hostname)` does so for local sources only.

Validation of FelixConfiguration is in datastore.validate.felix. Reference: host networking facts, section
6, and Calico data model, section 2.8.
"""

from tortie.datastore.felixparams.kinds import ProtoPort
from tortie.datastore.felixparams.param import FATAL, LOCAL, NON_ZERO, Param
from tortie.datastore.felixparams.resolve import Resolved, Source, datastore_layers, resolve, resolve_stored
from tortie.datastore.felixparams.sources import (
    DEFAULT_FILE,
    by_selector,
    from_cluster,
    from_environment,
    from_file,
    from_node,
    from_resource,
)
from tortie.datastore.felixparams.table import BY_FIELD, PARAMS

__all__ = [
    "BY_FIELD",
    "DEFAULT_FILE",
    "FATAL",
    "LOCAL",
    "NON_ZERO",
    "PARAMS",
    "Param",
    "ProtoPort",
    "Resolved",
    "Source",
    "by_selector",
    "datastore_layers",
    "from_cluster",
    "from_environment",
    "from_file",
    "from_node",
    "from_resource",
    "resolve",
    "resolve_stored",
]
