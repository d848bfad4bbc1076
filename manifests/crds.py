"""Writes crds.yaml: the custom resources of crd.projectcalico.org/v1, as calicoctl installs them, too.

python manifests/crds.py > manifests/crds.yaml
"""

import sys
from typing import Any

import yaml

from tortie.datastore.kubernetes.definitions import definitions


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """kubectl would read them, people would not."""
        return True


def main() -> None:
    sys.stdout.write("# Custom resources of Tortie, the same as Calico's. Written by crds.py: change that.\n")
    yaml.dump_all(definitions(), sys.stdout, _Dumper, sort_keys=False, explicit_start=True, width=110)


if __name__ == "__main__":
    main()
