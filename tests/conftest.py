"""Fixtures shared by all rooms."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # for tests.support

from tests.support.etcd_fixtures import backend, etcd, etcd_process, make_etcd

__all__ = ["backend", "etcd", "etcd_process", "make_etcd"]
