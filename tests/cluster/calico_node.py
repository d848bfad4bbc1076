"""A machine as Calico's agent leaves it: pods, routes, tunnel, chains, sets, files, and BIRD that still runs.

Nothing of ours makes any of it: `ip`, `iptables-restore` and `ipset` write what Calico 3.2x is seen to write.
Hashes of rules are of Calico's form; their values are made up, as those of another release would be.
"""

import base64
import hashlib
import json
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.lab import echo
from tortie.lab.cluster import Lab, LabNode
from tortie.lab.pods import PORTS, Pod
from tortie.linux import netns

POOL = "192.168.0.0/16"
BLOCKS = {"node-1": "192.168.84.128/26", "node-2": "192.168.247.0/26", "node-3": "192.168.139.64/26"}
PODS = {"a": ("node-1", 3), "d": ("node-1", 7), "b": ("node-2", 2), "c": ("node-3", 5)}  # -> node, ordinal
CLIENTS = ("a", "d")  # who may reach b; c may not

_SETS = {  # name -> type and members; those of a policy have a hash for a name
    "cali40all-hosts-net": "hash:net",
    "cali40all-ipam-pools": "hash:net",
    "cali40masq-ipam-pools": "hash:net",
    "cali40this-host": "hash:ip",
    "cali40s:6Q3p-T0HhPY4wZx1Lk9aBcd": "hash:net",
}
_CLIENT_SET = "cali40s:6Q3p-T0HhPY4wZx1Lk9aBcd"
_POLICY_CHAIN = "cali-pi-_Qw8Zr1VtXy2Lk0Pm3Nc"  # a digest of the policy's name, which differs by release
ONLY_CALICOS = (_POLICY_CHAIN, "-_be2FC_oTYVGpyStJEe", _CLIENT_SET, "cali40all-ipam-pools")
FOREIGN = [  # somebody else's, at the places where Calico has its own
    "*nat", ":KUBE-SERVICES - [0:0]", "-A PREROUTING -j KUBE-SERVICES", "COMMIT",
    "*filter", ":KUBE-FIREWALL - [0:0]", "-A INPUT -j KUBE-FIREWALL",
    "-A FORWARD -d 203.0.113.9/32 -j DROP", "COMMIT",
]  # fmt: skip


def address(pod: str) -> str:
    node, ordinal = PODS[pod]
    return ordinal_address(BLOCKS[node], ordinal)


def ordinal_address(block: str, ordinal: int) -> str:
    first, _, last = block.partition("/")[0].rpartition(".")
    return f"{first}.{int(last) + ordinal}"


def interface(pod: str) -> str:
    """libcalico-go: `cali` and 11 digits of the SHA-1 of namespace and name."""
    return "cali" + hashlib.sha1(f"default.{pod}".encode()).hexdigest()[:11]


def mac(node: str) -> str:
    """felix: of vxlan.calico."""
    return "66:" + hashlib.sha1(node.encode()).digest()[:5].hex(":")


@dataclass(frozen=True)
class Way:
    """How nodes reach each other: by BGP with this metric of BIRD's routes, or by VXLAN."""

    vxlan: bool = False
    metric: int = 0


def dress(lab: Lab, node: LabNode, way: Way, conflist: Mapping[str, object]) -> None:
    """Everything on one machine; its pods become `lab.pods`."""
    _files(node, conflist)
    node.box.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name, (where, _) in PODS.items():
        if where == node.name:
            lab.pods[name] = _pod(lab, node, name)
    if way.vxlan:
        _tunnel(lab, node)
    else:
        start_bird(lab, node, way.metric)
    _sets(lab, node)
    _restore(node, FOREIGN)
    _restore(node, [*_filter(node), *_nat(), *_rest()])


def _files(node: LabNode, conflist: Mapping[str, object]) -> None:
    texts = {
        "/var/lib/calico/nodename": node.name,
        "/var/lib/calico/mtu": "1450",
        "/run/calico/ipam.lock": "",
        "/etc/cni/net.d/10-calico.conflist": json.dumps(conflist, indent=2),
        "/opt/cni/bin/calico": "#!/bin/sh\necho the binary of Calico >&2; exit 1\n",
    }
    for path, text in texts.items():
        file = node.box.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _pod(lab: Lab, node: LabNode, name: str) -> Pod:
    """Calico's CNI plugin, and the pod's server."""
    box, container = node.box, hashlib.sha256(f"{name} of Calico".encode()).hexdigest()
    space, host = f"cni-{uuid.UUID(container[:32])}", interface(name)
    inside = ["ip", "-n", space]
    box.run("ip", "netns", "add", space)
    box.run("ip", "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", space)
    box.run("ip", "link", "set", host, "address", "ee:ee:ee:ee:ee:ee", "up")
    box.run(*inside, "link", "set", "lo", "up")
    box.run(*inside, "link", "set", "eth0", "up")
    box.run(*inside, "addr", "add", f"{address(name)}/32", "dev", "eth0")
    box.run(*inside, "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
    box.run(*inside, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
    for key, value in {"proxy_arp": 1, "forwarding": 1, "route_localnet": 1, "rp_filter": 1}.items():
        box.run("sysctl", "-qw", f"net.ipv4.conf.{host}.{key}={value}")
    box.run("sysctl", "-qw", f"net.ipv4.neigh.{host}.proxy_delay=0")
    box.run("ip", "route", "add", address(name), "dev", host, "scope", "link")
    path = f"/run/netns/{space}"
    server = [sys.executable, "-I", "-S", echo.__file__, name, *map(str, PORTS)]
    box.start(["nsenter", f"--net={path}", "--", *server], lab.folder / f"pod-{name}.log")
    return Pod(name, box, "default", container, path, netns.open(str(box.path(path))), [address(name)])


def others(lab: Lab, node: LabNode) -> list[LabNode]:
    return [one for one in lab.nodes.values() if one is not node]


# --- the ways -------------------------------------------------------------------------------------


def _tunnel(lab: Lab, node: LabNode) -> None:
    """felix's, in VXLAN mode: the device, and for each other node an ARP entry, an FDB entry and a route."""
    box, device = node.box, "vxlan.calico"
    options = ["id", "4096", "local", node.ip, "dev", "eth0", "dstport", "4789", "nolearning"]
    box.run("ip", "link", "add", device, "address", mac(node.name), "type", "vxlan", *options)
    box.run("ip", "link", "set", device, "mtu", "1450", "up")
    box.run("ip", "addr", "add", f"{vtep(node.name)}/32", "dev", device)
    for other in others(lab, node):
        far, ethernet = vtep(other.name), mac(other.name)
        box.run("bridge", "fdb", "append", ethernet, "dev", device, "dst", other.ip, "self", "permanent")
        box.run("ip", "neigh", "add", far, "lladdr", ethernet, "dev", device, "nud", "permanent")
        box.run("ip", "route", "add", BLOCKS[other.name], "via", far, "dev", device, "onlink")
    box.run("ip", "route", "add", "blackhole", BLOCKS[node.name], "proto", "80")


def vtep(node: str) -> str:
    return ordinal_address(BLOCKS[node], 0)


def start_bird(lab: Lab, node: LabNode, metric: int) -> None:
    """The parts of Calico's templates that matter to the kernel and to the neighbours."""
    sessions = "".join(
        f"protocol bgp Mesh_{other.name.replace('-', '_')} {{ local {node.ip} as 64512;"
        f" neighbor {other.ip} as 64512; direct; graceful restart;"
        " connect delay time 1; connect retry time 1; error wait time 1, 2;"
        f" ipv4 {{ add paths on; import all; export where net ~ {POOL} && source = RTS_STATIC; }}; }}\n"
        for other in others(lab, node)
    )
    node.box.path("/etc/bird.cfg").write_text(
        f"router id {node.ip};\nprotocol device {{ scan time 2; }}\n"
        'protocol direct { ipv4; interface -"cali*", -"kube-ipvs*", "*"; }\n'
        f"protocol static {{ ipv4; route {BLOCKS[node.name]} blackhole; }}\n"
        f"protocol kernel {{ learn; persist; scan time 2; graceful restart; merge paths on; metric {metric};"
        " ipv4 { import all; export where source ~ [RTS_STATIC, RTS_BGP]; }; }\n" + sessions
    )
    words = ["bird", "-R", "-s", "/var/run/calico/bird.ctl", "-f", "-c", "/etc/bird.cfg"]
    node.box.start(words, lab.folder / f"{node.name}-bird.log")


# --- chains and sets ------------------------------------------------------------------------------


def _restore(node: LabNode, lines: Iterable[str]) -> None:
    node.box.run("iptables-restore", "--noflush", stdin="\n".join([*lines, ""]))


def _sets(lab: Lab, node: LabNode) -> None:
    members = {
        "cali40all-hosts-net": [one.ip for one in lab.nodes.values()],
        "cali40all-ipam-pools": [POOL],
        "cali40masq-ipam-pools": [POOL],
        "cali40this-host": ["127.0.0.1", node.ip],
        _CLIENT_SET: [address(one) for one in CLIENTS],
    }
    lines = [f"create {name} {kind} family inet maxelem 1048576" for name, kind in _SETS.items()]
    lines += [f"add {name} {one}" for name, some in members.items() for one in some]
    lines += ["create theirs hash:ip family inet", "add theirs 203.0.113.9"]  # nobody's of Calico
    node.box.run("ipset", "restore", stdin="\n".join([*lines, ""]))


def _rules(chain: str, *texts: str) -> list[str]:
    """With comments that hold a hash of the rule and of those before it."""
    found, digest = [], chain
    for text in texts:
        digest = base64.urlsafe_b64encode(hashlib.sha256((digest + text).encode()).digest())[:16].decode()
        match, _, action = text.rpartition("-j ") if "-j " in text else text.rpartition("-g ")
        jump = "-j" if "-j " in text else "-g"
        found.append(f'-A {chain} {match}-m comment --comment "cali:{digest}" {jump} {action}')
    return found


_ACCEPTED = "-m mark --mark 0x10000/0x10000"


def _filter(node: LabNode) -> list[str]:
    pods = [name for name, (where, _) in PODS.items() if where == node.name]
    chains = ["cali-FORWARD", "cali-INPUT", "cali-OUTPUT", "cali-cidr-block", "cali-from-hep-forward",
              "cali-from-host-endpoint", "cali-to-hep-forward", "cali-to-host-endpoint", "cali-wl-to-host",
              "cali-from-wl-dispatch", "cali-to-wl-dispatch", "cali-pri-kns.default", "cali-pro-kns.default",
              "cali-pri-_be2FC_oTYVGpyStJEe", "cali-pro-_be2FC_oTYVGpyStJEe"]  # fmt: skip
    rules = [
        '-I INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT',
        '-I FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD',
        '-I OUTPUT -m comment --comment "cali:tVnHkvAo15HuiPy0" -j cali-OUTPUT',
        '-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly '
        f'accepted packet." {_ACCEPTED} -j ACCEPT',
        '-A FORWARD -m comment --comment "cali:mp77cMpurHhyjLrM" -j MARK --set-xmark 0x10000/0x10000',
        *_rules(
            "cali-FORWARD",
            "-j MARK --set-xmark 0x0/0xe0000",
            "-m mark --mark 0x0/0x10000 -j cali-from-hep-forward",
            "-i cali+ -j cali-from-wl-dispatch",
            "-o cali+ -j cali-to-wl-dispatch",
            "-j cali-to-hep-forward",
            "-j cali-cidr-block",
        ),
        *_rules(
            "cali-INPUT",
            "-p udp -m multiport --dports 4789 -m set --match-set cali40all-hosts-net src "
            "-m addrtype --dst-type LOCAL -j ACCEPT",
            "-i cali+ -g cali-wl-to-host",
            f"{_ACCEPTED} -j ACCEPT",
            "-j MARK --set-xmark 0x0/0xf0000",
            "-j cali-from-host-endpoint",
        ),
        *_rules("cali-OUTPUT", f"{_ACCEPTED} -j ACCEPT", "-o cali+ -j RETURN", "-j cali-to-host-endpoint"),
        *_rules("cali-wl-to-host", "-j cali-from-wl-dispatch", "-j RETURN"),
    ]
    for way in ("pri", "pro"):
        allow = ["-j MARK --set-xmark 0x10000/0x10000", f"{_ACCEPTED} -j RETURN"]
        rules += _rules(f"cali-{way}-kns.default", *allow)
    for name in pods:
        chains += [f"cali-tw-{interface(name)}", f"cali-fw-{interface(name)}"]
        rules += _endpoint(name)
    if "b" in pods:
        chains.append(_POLICY_CHAIN)
        match = f"-m set --match-set {_CLIENT_SET} src"
        rules += _rules(_POLICY_CHAIN, f"{match} -j MARK --set-xmark 0x10000/0x10000",
                        f"{_ACCEPTED} -j RETURN")  # fmt: skip
    for way, option, letter in (("from", "-i", "f"), ("to", "-o", "t")):
        gotos = [f"{option} {interface(name)} -g cali-{letter}w-{interface(name)}" for name in pods]
        rules += _rules(f"cali-{way}-wl-dispatch", *gotos, "-j DROP")
    return ["*filter", *(f":{name} - [0:0]" for name in chains), *rules, "COMMIT"]


def _endpoint(pod: str) -> list[str]:
    known = ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate INVALID -j DROP",
             "-j MARK --set-xmark 0x0/0x10000"]  # fmt: skip
    returned = f"{_ACCEPTED} -j RETURN"
    policy = [
        "-j MARK --set-xmark 0x0/0x20000",
        f"-m mark --mark 0x0/0x20000 -j {_POLICY_CHAIN}",
        returned,
        "-m mark --mark 0x0/0x20000 -j DROP",
    ]
    inward, outward = (
        [f"-j cali-{way}-kns.default", returned, f"-j cali-{way}-_be2FC_oTYVGpyStJEe", returned, "-j DROP"]
        for way in ("pri", "pro")
    )
    own = interface(pod)
    return [
        *_rules(f"cali-tw-{own}", *known, *(policy if pod == "b" else []), *inward),
        *_rules(
            f"cali-fw-{own}", *known, "-p udp -m multiport --dports 4789 -j DROP", "-p 4 -j DROP", *outward
        ),
    ]


def _nat() -> list[str]:
    chains = ["PREROUTING", "POSTROUTING", "OUTPUT", "fip-dnat", "fip-snat", "nat-outgoing"]
    return [
        "*nat", *(f":cali-{name} - [0:0]" for name in chains),
        '-I PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING',
        '-I POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING',
        '-I OUTPUT -m comment --comment "cali:tVnHkvAo15HuiPy0" -j cali-OUTPUT',
        *_rules("cali-PREROUTING", "-j cali-fip-dnat"),
        *_rules("cali-OUTPUT", "-j cali-fip-dnat"),
        *_rules("cali-POSTROUTING", "-j cali-fip-snat", "-j cali-nat-outgoing"),
        *_rules("cali-nat-outgoing", "-m set --match-set cali40masq-ipam-pools src -m set ! "
                "--match-set cali40all-ipam-pools dst -j MASQUERADE"),
        "COMMIT",
    ]  # fmt: skip


def _rest() -> list[str]:
    return [
        "*raw", ":cali-PREROUTING - [0:0]", ":cali-rpf-skip - [0:0]", ":cali-OUTPUT - [0:0]",
        '-I PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING',
        '-I OUTPUT -m comment --comment "cali:tVnHkvAo15HuiPy0" -j cali-OUTPUT',
        *_rules("cali-PREROUTING", "-j MARK --set-xmark 0x0/0xf0000",
                "-i cali+ -j MARK --set-xmark 0x40000/0x40000",
                "-m mark --mark 0x40000/0x40000 -j cali-rpf-skip",
                "-m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP"),
        "COMMIT",
        "*mangle", ":cali-PREROUTING - [0:0]", ":cali-POSTROUTING - [0:0]",
        '-I PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING',
        '-I POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING',
        *_rules("cali-PREROUTING", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        "COMMIT",
    ]  # fmt: skip
