"""What is written for the container runtime: the network configuration and the plugin's kubeconfig. Pure.

The template of the configuration is an administrator's (the ConfigMap `calico-config`), with Calico's
placeholders in it (reference: CLI and Kubernetes, 4.2; cni-plugin/pkg/install).
"""

import base64
import json
from collections.abc import Collection, Mapping

from tortie.core.errors import ConfigError

# Where no template is given, and what the manifests give.
TEMPLATE = """{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "datastore_type": "kubernetes",
      "nodename": "__KUBERNETES_NODE_NAME__",
      "mtu": __CNI_MTU__,
      "ipam": {"type": "calico-ipam"},
      "policy": {"type": "k8s"},
      "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__"}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    }
  ]
}
"""
TLS_FILES = {  # file of a secret -> the placeholder of its path
    "etcd-ca": "__ETCD_CA_CERT_FILE__",
    "etcd-cert": "__ETCD_CERT_FILE__",
    "etcd-key": "__ETCD_KEY_FILE__",
}
_VARIABLES = {  # placeholder -> its environment variable and what counts where that is not set
    "__LOG_LEVEL__": ("LOG_LEVEL", "info"),
    "__LOG_FILE_PATH__": ("LOG_FILE_PATH", "/var/log/calico/cni/cni.log"),
    "__LOG_FILE_MAX_SIZE__": ("LOG_FILE_MAX_SIZE", "100"),
    "__LOG_FILE_MAX_AGE__": ("LOG_FILE_MAX_AGE", "30"),
    "__LOG_FILE_MAX_COUNT__": ("LOG_FILE_MAX_COUNT", "10"),
    "__DATASTORE_TYPE__": ("DATASTORE_TYPE", "kubernetes"),
    "__CNI_MTU__": ("CNI_MTU", "1500"),
    "__KUBERNETES_SERVICE_HOST__": ("KUBERNETES_SERVICE_HOST", ""),
    "__KUBERNETES_SERVICE_PORT__": ("KUBERNETES_SERVICE_PORT", ""),
    "__CALICO_API_GROUP__": ("CALICO_API_GROUP", "crd.projectcalico.org/v1"),
    "__ETCD_ENDPOINTS__": ("ETCD_ENDPOINTS", ""),
    "__ETCD_DISCOVERY_SRV__": ("ETCD_DISCOVERY_SRV", ""),
    "__REQUIRE_MTU_FILE__": ("REQUIRE_MTU_FILE", "false"),
}


def network_configuration(
    template: str, env: Mapping[str, str], node: str, folder: str, tls: Collection[str], token: str = ""
) -> str:
    """The template with its placeholders filled in.

    `node` is this node's name, `folder` where the runtime has its configurations, `tls` the files of
    TLS_FILES that are in its `calico-tls`, `token` the service account's. Raises ConfigError if the result
    is no JSON object; the message shows nothing of it, because there may be secrets in it.
    """
    values = {name: env.get(variable, default) for name, (variable, default) in _VARIABLES.items()}
    values |= {name: f"{folder}/calico-tls/{file}" * (file in tls) for file, name in TLS_FILES.items()}
    values["__KUBERNETES_NODE_NAME__"] = env.get("KUBERNETES_NODE_NAME", node)
    values["__KUBECONFIG_FILEPATH__"] = f"{folder}/calico-kubeconfig"
    values["__SERVICEACCOUNT_TOKEN__"] = token
    for name, value in values.items():
        template = template.replace(name, json.dumps(value)[1:-1])  # a quote in it is no end of a text
    try:
        valid = isinstance(json.loads(template), dict)
        why = "not an object"
    except ValueError as err:
        valid, why = False, str(err)
    if not valid:
        raise ConfigError("CNI_NETWORK_CONFIG", "…", f"CNI config is not valid JSON: {why}")
    return template


def kubeconfig(url: str, authority: bytes, token: str, *, insecure: bool = False) -> str:
    """For programs on the host. `authority`: certificates in PEM; `insecure`: they are not asked for."""
    if insecure:
        trust = "insecure-skip-tls-verify: true"
    else:
        trust = f'certificate-authority-data: "{base64.b64encode(authority).decode()}"'
    return f"""# For the CNI plugin; written by calico-node, which gives it a new token in time.
apiVersion: v1
kind: Config
clusters:
- name: local
  cluster:
    server: {json.dumps(url)}
    {trust}
users:
- name: calico
  user:
    token: {json.dumps(token)}
contexts:
- name: calico-context
  context:
    cluster: local
    user: calico
current-context: calico-context
"""
