"""The CNI plugin: protocol, server, pod interface set-up, and the shim that runtimes execute."""
