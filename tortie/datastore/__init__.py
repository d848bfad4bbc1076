"""The datastore: Calico's v3 resources in etcd or in the Kubernetes API, read, written and followed.

- `config`, `connect`: where it is, and a `client` for it. `backend`: what etcd and `kubernetes` can both do.
- `types`, `kinds`, `keys`, `codec`: the resources, and how they are stored; `nativekeys`: Kubernetes' own.
- `validate`, `rules`, `selector`, `names`: what may be stored, what it means. `initialize`: what is first.
- `syncer`: the stream of changes. `felixparams`: felix's settings from all their sources.
"""
