"""v3 resource types, defaults, validation, selectors, the etcd backend and the watch stream (syncer)."""
