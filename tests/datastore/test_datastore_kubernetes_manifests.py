"""The manifests: written by their program, and all that the datastore reads is defined."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.sources import Sources

pytestmark = pytest.mark.unit

MANIFESTS = Path(__file__).parent.parent.parent / "manifests"


def test_the_definitions_are_those_that_the_types_give() -> None:
    made = subprocess.run([sys.executable, MANIFESTS / "crds.py"], check=True, capture_output=True, text=True)
    assert (MANIFESTS / "crds.yaml").read_text() == made.stdout


def test_every_collection_of_ours_is_defined() -> None:
    definitions = list(yaml.safe_load_all((MANIFESTS / "crds.yaml").read_text()))
    defined = {one["spec"]["names"]["plural"]: one["spec"]["scope"] for one in definitions}
    sources = Sources()
    ours = [
        *(source for source in sources.custom.values() if source.ours),  # not KubeVirt's migrations
        sources.blocks,
        sources.affinities,
        sources.handles,
        sources.ipam_config,
    ]
    assert {source.plural for source in ours} == defined.keys()
    for source in ours:
        assert defined[source.plural] == ("Namespaced" if source.namespaced else "Cluster")
    assert len(KINDS) > len(sources.custom) > 15
