"""The CNI plugin: a static binary on the host, and the server that does the work for it.

The binary (shim.c, installed as `calico` and `calico-ipam`) passes each call of the container runtime
to the server's socket and runs other plugins when the server asks it to. The way of a call:

- `server`, `conversation`, `wire`: the socket, one shim's connection, its frames.
- `handler`: from a request to its answer. `protocol`, `netconf`, `identity`, `pods`: what is asked, checked
  and typed. `operation`: one call under way. `locks`, `journal`: turns, log lines.
- `plugin` (ADD, DEL), `check`, `collect` (GC, STATUS), `ipam` (the `calico-ipam` binary on its own).
- `addressing`: addresses from Calico's IPAM in this process; `delegate`: from another plugin.
- `vmaddresses`: addresses of KubeVirt's VMs, by what `kubevirt` knows of them.
- `warm`, `given`, `warmplan`: addresses kept ready, and those given away; `blockwatch`: what others take.
- `later`: what an ADD that has answered still owes. `notes`: how either survives a crash.
- `interface` (what is to exist), `wiring` (making it so), `endpoint` (what the datastore is told).
- `endpoints`, `attachments`: endpoints in the datastore, and which of them a call is about.
- `store`: the datastore and what is remembered of it. `podsource`, `nearpods`: who knows a pod.
- `node`, `waiting`: the node's files, others' signs. `result`, `advice`: what the runtime is told.
- `install`, `conflist`, `credential`, `hostfiles`: how all this gets onto a host.

The face: `server.Server`, `server.Settings`, `server.main`; `shim.build`; `pods.PodSource` for whoever knows
pods from elsewhere. Environment: TORTIE_CNI_SOCKET (/var/run/calico/cni.sock; read by the shim too),
CALICO_RUN_DIR, CALICO_LIB_DIR, CALICO_NODENAME_FILE, NODENAME, FELIX_INTERFACEPREFIX,
CALICO_CNI_LOG_SEVERITY, and the datastore's.
"""
