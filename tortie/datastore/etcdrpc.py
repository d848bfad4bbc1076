"""etcd's protobuf bindings, imported in the one way that works; nobody else imports etcd3.

etcd3 0.12 ships bindings generated for an old protobuf; current runtimes accept them only in the
pure-Python implementation, which must be chosen before the first import. Only the bindings are
used: the package's own client blocks and its watches die silently.
"""

import os

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr past our logging

import grpc
from etcd3.etcdrpc import AuthStub, KVStub, LeaseStub, WatchStub, rpc_pb2

__all__ = ["AuthStub", "KVStub", "LeaseStub", "WatchStub", "grpc", "rpc_pb2"]
