"""The commands below `bgp`, `ipam`, `node`, `cluster` and `datastore`, as data.

Names, flags and defaults are Calico's. (Reference: CLI, section 1.)
"""

from tortie.calicoctl.flags import CONFIG, Flag
from tortie.calicoctl.tree import Command

_ANY = (0, None)
_LOG_DIRECTORY = "/var/log/calico"

_LOCAL = Flag("local", "this host, from its BGP agent, with reasons (needs root)", kind="bool")

_GOAL = (
    CONFIG,
    Flag("reflectors", "nodes that are to reflect routes, separated by commas"),
    Flag("cluster-id", "cluster ID of the reflectors", default="244.0.0.1"),
    Flag("mesh", "go back to the full mesh", kind="bool"),
)

BGP = Command(
    "bgp",
    "BGP: the sessions and routes of all nodes, and the way to reflectors",
    "Shows the BGP sessions and routes of nodes, as their CalicoNodeStatus resources tell them, or\n"
    "those of this host, as its BGP agent tells them; goes from the full mesh to route reflectors.",
    children=(
        Command(
            "peers",
            "Show the BGP sessions of nodes",
            "Shows the BGP sessions of the named nodes, or of all.",
            "[NODE...]",
            "  calicoctl bgp peers\n  calicoctl bgp peers --local",
            (CONFIG, _LOCAL),
            "bgpshow:peers",
            _ANY,
        ),
        Command(
            "routes",
            "Show the routes of nodes",
            "Shows the routes that the named nodes, or all, know for other nodes and services.",
            "[NODE...]",
            "  calicoctl bgp routes node-0\n  calicoctl bgp routes --local",
            (CONFIG, _LOCAL),
            "bgpshow:routes",
            _ANY,
        ),
        Command(
            "plan",
            "Show the steps from the full mesh to route reflectors, or back",
            "Shows what bgp apply would do, with the effect of each step, and what of it is done already.",
            example="  calicoctl bgp plan --reflectors node-a,node-b\n  calicoctl bgp plan --mesh",
            flags=_GOAL,
            run="bgpapply:plan",
        ),
        Command(
            "apply",
            "Go from the full mesh to route reflectors, or back, without an outage",
            "Makes new sessions and waits for them and for their routes before the old ones go.\n"
            "Interrupted, the same command goes on; with the opposite goal it undoes what was done.",
            example="  calicoctl bgp apply --reflectors node-a,node-b\n  calicoctl bgp apply --mesh",
            flags=(
                *_GOAL,
                Flag("timeout", "how long to wait for each step", default="5m"),
            ),
            run="bgpapply:apply",
        ),
    ),
)
IPAM = Command(
    "ipam",
    "Addresses: how many are used, and by whom",
    "Shows and checks how the addresses of the IP pools are used, and gives back what is not.",
    children=(
        Command(
            "check",
            "Check who has which address against who uses it",
            "Looks for addresses that are allocated but not used, or used but not allocated, and for\n"
            "blocks, affinities and handles that contradict each other. With -o it writes a report, from\n"
            "which ipam release takes what may be released.",
            example="  calicoctl ipam check --show-problem-ips -o report.json",
            flags=(
                CONFIG,
                Flag("show-all-ips", "list every address that is looked at", kind="bool"),
                Flag("show-problem-ips", "list the addresses that something is wrong with", kind="bool"),
                Flag("output", "file to write the report to", "o"),
                Flag("kubeconfig", "file with the connection to Kubernetes, for its Services"),
            ),
            run="ipamcheck:check",
            arity=_ANY,
        ),
        Command(
            "configure",
            "Configure how addresses are assigned",
            "Changes settings of the whole cluster. Addresses that are in use stay as they are.",
            example="  calicoctl ipam configure --strictaffinity=true",
            flags=(
                CONFIG,
                Flag("strictaffinity", "true: a node takes addresses of its own blocks only; or false"),
                Flag("max-blocks-per-host", "how many blocks a node may own, 0 for the default limit"),
                Flag(
                    "kubevirt-ip-persistence",
                    "Enabled or Disabled: whether a virtual machine keeps its addresses",
                ),
                Flag(
                    "ip-cooldown-seconds",
                    "how long a released address rests before it is used again",
                    kind="int",
                    default=-1,
                ),
            ),
            run="ipamconfigure:configure",
            arity=_ANY,
        ),
        Command(
            "release",
            "Release an address, or those that a report calls leaked",
            "Releases one address, whoever uses it, or the addresses and handles that all the given reports\n"
            "of ipam check call leaked and that nobody uses by now.",
            example="  calicoctl ipam release --ip 10.0.0.1\n"
            "  calicoctl ipam release --from-report report.json",
            flags=(
                CONFIG,
                Flag("ip", "the address to release"),
                Flag("from-report", "a report; may be given several times", kind="stringArray"),
                Flag(
                    "force",
                    "release by a report of another version, and while the datastore is not locked",
                    kind="bool",
                ),
            ),
            run="ipamrelease:release",
            arity=_ANY,
        ),
        Command(
            "show",
            "Show the usage of pools and blocks, or of one address",
            "Shows how full each IP pool is; the flags ask for blocks, one address, borrowed addresses\n"
            "or the configuration instead.",
            example="  calicoctl ipam show --show-blocks\n  calicoctl ipam show --ip 10.0.0.1",
            flags=(
                CONFIG,
                Flag("ip", "tell whether this address is in use, and by whom"),
                Flag("show-blocks", "show the blocks of each pool as well", kind="bool"),
                Flag(
                    "show-borrowed",
                    "show addresses used by a node that does not own their block",
                    kind="bool",
                ),
                Flag("show-configuration", "show the configuration of IPAM", kind="bool"),
                Flag("warm", "show the addresses that nodes keep ready for their next pods", kind="bool"),
            ),
            run="ipamshow:show",
            arity=_ANY,
        ),
        Command(
            "split",
            "Split a pool into several of equal size",
            "Splits a pool, named or given by its CIDR, into NUMBER pools (a power of 2) while its\n"
            "addresses stay where they are. The datastore must be locked.",
            "NUMBER",
            "  calicoctl ipam split 4 --name my-pool",
            (CONFIG, Flag("cidr", "CIDR of the pool"), Flag("name", "name of the pool")),
            "ipamsplit:split",
            (1, 1),
        ),
    ),
)

NODE = Command(
    "node",
    "This host as a node",
    "Commands about the node that runs on this host.",
    children=(
        Command(
            "checksystem",
            "Check that this host's kernel has what a node needs",
            "Checks the kernel's version, and that each module a node needs is loaded, built in or can be\n"
            "loaded. Needs root.",
            example="  sudo calicoctl node checksystem",
            flags=(Flag("kernel-config", "file with the kernel's configuration", "f"),),
            run="checksystem:checksystem",
            arity=_ANY,
        ),
        Command(
            "diags",
            "Collect what helps to find out what is wrong with this node",
            "Collects routes, addresses, rules, sets and logs of this host into one archive. Needs root.",
            example="  sudo calicoctl node diags",
            flags=(Flag("log-dir", "directory with the node's logs", default=_LOG_DIRECTORY),),
            run="nodediags:diags",
            arity=_ANY,
        ),
        Command(
            "run",
            "Start the node's container on this host",
            "Starts the node's container with docker; what is not given is found out by the node. Needs\n"
            "root, except with --dryrun.",
            example="  sudo calicoctl node run --ip autodetect --ip-autodetection-method can-reach=192.0.2.1",
            flags=(
                CONFIG,
                Flag("ip", "the node's IPv4 address, or autodetect"),
                Flag("ip6", "the node's IPv6 address, or autodetect"),
                Flag("as", "the node's AS number"),
                Flag("name", "the node's name; without it the host's"),
                Flag("ip-autodetection-method", "how to find the IPv4 address", default="first-found"),
                Flag("ip6-autodetection-method", "how to find the IPv6 address", default="first-found"),
                Flag("log-dir", "directory for the node's logs", default=_LOG_DIRECTORY),
                Flag("node-image", "the container's image", default="quay.io/calico/node:latest"),
                Flag("backend", "what spreads routes: bird, or none", default="bird"),
                Flag("dryrun", "print the command instead of running it", kind="bool"),
                Flag("init-system", "stay attached, for an init system that starts it again", kind="bool"),
                Flag("no-default-ippools", "make no default IP pools", kind="bool"),
                Flag("felix-config", "file with felix's configuration"),
            ),
            run="noderun:run",
            arity=_ANY,
        ),
        Command(
            "status",
            "Show whether the node runs, and its BGP sessions",
            "Shows whether this host's node runs, and the state of each of its BGP sessions. Needs root.",
            example="  sudo calicoctl node status",
            run="nodestatus:status",
            arity=_ANY,
        ),
    ),
)

CLUSTER = Command(
    "cluster",
    "The cluster as a whole",
    "Commands about all nodes together.",
    children=(
        Command(
            "diags",
            "Collect what helps to find out what is wrong with the cluster",
            "Collects resources of Kubernetes and Calico, logs and the nodes' networking with kubectl into\n"
            "one archive in the present directory.",
            example="  calicoctl cluster diags --since 1h",
            flags=(
                CONFIG,
                Flag("since", "only logs of this last time (10s, 5m, 1h)"),
                Flag("max-logs", "of how many pods of each component to take logs", kind="int", default=5),
                Flag("max-parallelism", "how many commands to run at once", kind="int", default=10),
                Flag("focus-nodes", "nodes to take logs from first, separated by commas"),
                Flag("skip-temp-dir-cleanup", "keep the temporary directory", kind="bool"),
            ),
            run="clusterdiags:diags",
            arity=_ANY,
        ),
    ),
)

DATASTORE = Command(
    "datastore",
    "The datastore itself",
    "Locks the datastore, moves its contents, brings old data up to date.",
    children=(
        Command(
            "migrate",
            "Move the contents of etcd to a Kubernetes datastore",
            "Lock, export, import, unlock: in this order they move a cluster from etcd to Kubernetes.",
            children=(
                Command(
                    "export",
                    "Print the contents of etcd",
                    "Prints what import takes. The datastore must be locked.",
                    example="  calicoctl datastore migrate export > datastore.yaml",
                    flags=(CONFIG,),
                    run="migrateexport:export",
                    arity=_ANY,
                ),
                Command(
                    "import",
                    "Store what export has printed",
                    "Stores what export has printed in a Kubernetes datastore.",
                    example="  calicoctl datastore migrate import -f datastore.yaml",
                    flags=(CONFIG, Flag("filename", "what export has printed, - for standard input", "f")),
                    run="migrateimport:import_resources",
                    arity=_ANY,
                ),
                Command(
                    "lock",
                    "Lock the datastore",
                    "Locks the datastore: no pod is started or stopped, and nothing is cleaned up.",
                    example="  calicoctl datastore migrate lock",
                    flags=(CONFIG,),
                    run="migrate:lock",
                    arity=_ANY,
                ),
                Command(
                    "unlock",
                    "Unlock the datastore",
                    "Unlocks the datastore.",
                    example="  calicoctl datastore migrate unlock",
                    flags=(CONFIG,),
                    run="migrate:unlock",
                    arity=_ANY,
                ),
            ),
        ),
        Command(
            "migrate-policy-names",
            "Store policies of versions before 3.32 under their present names",
            "Stores policies of the default tier, which versions before 3.32 stored as default.NAME, under\n"
            "their names. It may be repeated.",
            example="  calicoctl datastore migrate-policy-names",
            flags=(CONFIG,),
            run="migrate:policy_names",
            arity=_ANY,
        ),
    ),
)
