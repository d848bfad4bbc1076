"""The commands over resources, and the whole tree, as data; what they do is imported when they run."""

from tortie.calicoctl.flags import CONFIG, Flag
from tortie.calicoctl.groups import BGP, CLUSTER, DATASTORE, IPAM, NODE
from tortie.calicoctl.tree import Command

_NAMESPACE = Flag("namespace", "namespace of the resource", "n")
_CRUD = (
    Flag("filename", "file or directory with resources, - for standard input", "f"),
    Flag("recursive", "also read the directories below the directory given with -f", "R", "bool"),
    Flag("skip-empty", "accept files that contain no resources", kind="bool"),
    CONFIG,
    _NAMESPACE,
)
# kubectl's, also its values; Calico's has no such flag.
_DRY_RUN = Flag(
    "dry-run",
    "client or server: check and tell, but write nothing; or none",
    default="none",
)
_KINDS = "[KIND [NAME...]]"
_ANY = (0, None)

_GET = Command(
    "get",
    "Show resources, given by kind and name or by file, directory or stdin",
    "Shows all resources of a kind, those that are named, or those that a file describes. What -o yaml and\n"
    "-o json print can be edited and given back to apply or replace.",
    _KINDS,
    "  calicoctl get nodes -o wide\n  calicoctl get ippool default-ipv4-ippool -o yaml > pool.yaml",
    (
        *_CRUD,
        Flag(
            "output",
            "ps, wide, yaml, json, custom-columns=..., go-template=... or go-template-file=...",
            "o",
            default="ps",
        ),
        Flag("all-namespaces", "show the resources of all namespaces", "A", "bool"),
        Flag("all-namespaces-a", "the same as --all-namespaces", "a", "bool", hidden=True),
        Flag(
            "export", "leave out what belongs to this cluster: namespace, UID, revision, times", kind="bool"
        ),
    ),
    "crud:get",
    _ANY,
    complete="kinds",
)
_CREATE = Command(
    "create",
    "Create resources by file, directory or stdin",
    "Creates resources and fails for those that exist already; apply updates these.",
    example="  calicoctl create -f policy.yaml\n  cat policy.json | calicoctl create -f -",
    flags=(*_CRUD, _DRY_RUN, Flag("skip-exists", "count resources that exist already as done", kind="bool")),
    run="crud:create",
    arity=_ANY,
)
_APPLY = Command(
    "apply",
    "Create or update resources by file, directory or stdin",
    "Creates the resources that do not exist and updates those that do.",
    example="  calicoctl apply -f policy.yaml\n  calicoctl apply -R -f manifests/",
    flags=(*_CRUD, _DRY_RUN),
    run="crud:apply",
    arity=_ANY,
)
_REPLACE = Command(
    "replace",
    "Replace existing resources by file, directory or stdin",
    "Replaces resources and fails for those that do not exist; apply creates these.",
    example="  calicoctl replace -f policy.yaml",
    flags=(*_CRUD, _DRY_RUN),
    run="crud:replace",
    arity=_ANY,
)
_VALIDATE = Command(
    "validate",
    "Check resources by file, directory or stdin without storing them",
    "Checks resources as create would, without a datastore.",
    example="  calicoctl validate -f policy.yaml",
    flags=_CRUD,
    run="crud:validate",
    arity=_ANY,
)
_CONVERT = Command(
    "convert",
    "Convert resources of Calico v1 or Kubernetes NetworkPolicies to Calico v3",
    "Prints the resources of a file, of Calico's v1 API or NetworkPolicies of Kubernetes, as resources of\n"
    "Calico v3. Needs no datastore.",
    example="  calicoctl convert -f v1-policy.yaml -o yaml\n  cat policy.json | calicoctl convert -f -",
    flags=(
        Flag("filename", "file with resources, - for standard input", "f"),
        Flag("output", "yaml or json", "o", default="yaml"),
        Flag("ignore-validation", "print also what does not pass the checks", kind="bool"),
    ),
    run="convert:convert",
)
_DELETE = Command(
    "delete",
    "Delete resources, given by kind and name or by file, directory or stdin",
    "Deletes resources; one that does not exist is an error unless --skip-not-exists is given.",
    _KINDS,
    "  calicoctl delete networkpolicy allow-db -n shop\n  calicoctl delete -f policy.yaml",
    (*_CRUD, _DRY_RUN, Flag("skip-not-exists", "count resources that do not exist as done", "s", "bool")),
    "crud:delete",
    _ANY,
    complete="kinds",
)
_PATCH = Command(
    "patch",
    "Change some fields of one resource in place",
    "Changes the fields that the patch names, by a strategic merge patch in JSON, and keeps the others.",
    "KIND NAME",
    """  calicoctl patch node node-0 -p '{"spec":{"bgp":{"routeReflectorClusterID":"224.0.0.1"}}}'""",
    (
        CONFIG,
        _NAMESPACE,
        _DRY_RUN,
        Flag("patch", "the patch", "p"),
        Flag(
            "type", "accepted for compatibility; every patch is a strategic merge", "t", default="strategic"
        ),
    ),
    "crud:patch",
    (2, 2),
    complete="kinds",
)
_LABEL = Command(
    "label",
    "Set or remove one label of a resource",
    "Sets a label, KEY=VALUE, or removes it, KEY with --remove.",
    "KIND NAME KEY=VALUE",
    "  calicoctl label node node-0 rack=r7\n  calicoctl label node node-0 rack --remove",
    (
        CONFIG,
        _NAMESPACE,
        _DRY_RUN,
        Flag("overwrite", "change the label if it has another value", kind="bool"),
        Flag("remove", "remove the label", kind="bool"),
    ),
    "label:label",
    (3, None),
    complete="kinds",
)
_VERSION = Command(
    "version",
    "Show the version of this program and of the cluster",
    "Shows the version of this program and, if the datastore answers, of the cluster.",
    example="  calicoctl version --client",
    flags=(
        Flag("config", "file with the connection to the datastore, YAML or JSON", "c"),
        Flag("poll", "ask again at this interval (10s, 1m), printing what has changed"),
        Flag("client", "show the version of this program only", kind="bool"),
    ),
    run="version:version",
    arity=_ANY,
)


def _shell(name: str, load: str) -> Command:
    return Command(
        name,
        f"Print the completion script for {name}",
        f"Prints the completion script for {name}. To use it in every new shell:\n\n  {load}",
        run=f"completion:print_{name}",
    )


_COMPLETION = Command(
    "completion",
    "Print a shell's completion script",
    "Prints the script that lets a shell complete commands, flags and kinds.",
    children=(
        _shell("bash", "calicoctl completion bash > /etc/bash_completion.d/calicoctl"),
        _shell("fish", "calicoctl completion fish > ~/.config/fish/completions/calicoctl.fish"),
        _shell("zsh", 'calicoctl completion zsh > "${fpath[1]}/_calicoctl"'),
    ),
)
_HELP = Command("help", "Help about any command", usage="[COMMAND]", run="help:help_command", arity=_ANY)
_COMPLETE = Command(
    "__complete", "The candidates for a command line's last word", run="completion:complete", hidden=True
)

GLOBAL = (
    Flag("log-level", "panic, fatal, error, warn, info or debug", "l", default="panic"),
    Flag("context", "the kubeconfig context to use"),
    Flag("allow-version-mismatch", "work with a cluster of another version", kind="bool"),
)


def root(name: str = "calicoctl") -> Command:
    """The whole tree, under the name that the program was called by."""
    return Command(
        name,
        "Manage Calico resources",
        "Manages Calico's network and policy resources, addresses, and the node on this host.",
        flags=GLOBAL,
        children=(
            _APPLY, BGP, CLUSTER, _COMPLETION, _CONVERT, _CREATE, DATASTORE, _DELETE, _GET, _HELP, IPAM,
            _LABEL, NODE, _PATCH, _REPLACE, _VALIDATE, _VERSION, _COMPLETE,
        ),
    )  # fmt: skip
