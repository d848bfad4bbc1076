"""`calico-node -shutdown`: what a pod's preStop hook runs. It only leaves a note of the time.

The note (RFC 3339) tells the next start, and a person, that the node was stopped on purpose.
"""

import os
import sys
import time

from tortie.core.files import write_atomic

_DEFAULT = "/var/lib/calico/shutdownTS"


def main() -> int:
    path = os.environ.get("CALICO_SHUTDOWN_TIMESTAMP_FILE") or _DEFAULT
    try:
        write_atomic(path, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    except OSError as err:
        print(f"Unable to save shutdown timestamp: {path}: {err.strerror}", file=sys.stderr)
        return 1
    return 0
