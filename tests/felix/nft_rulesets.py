"""Rulesets of the intermediate form as one input for `nft -f`, and pictures of what stands in the kernel."""

import json
from typing import Any

from tests.netns_lab import Namespace
from tortie.felix.rules import ir, names
from tortie.felix.rules.evaluate import Ruleset
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.nftables import render_chain, render_hook
from tortie.linux.nft_table import Chain, Content, Key, Map

_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}


def rendered(ruleset: Ruleset, version: int) -> dict[Key, Content]:
    found: dict[Key, Content] = {}
    for (table, name), one in ruleset.items():
        if isinstance(one, ir.Hook):
            found["chain", f"{table}-{name}"] = render_hook(one, table, name, Features())
        else:
            found |= render_chain(one, table, version, Features())
    return found


def sets_of(ruleset: Ruleset, version: int) -> dict[str, bool]:
    """The sets a ruleset needs, and whether with ports."""
    found: dict[str, bool] = {}
    for one in ruleset.values():
        rules = one.rules if isinstance(one, ir.Chain) else one.first + one.last
        for rule in rules:
            for match in rule.matches:
                if isinstance(match, ir.InSet):
                    found[names.nft_set(version, match.id)] = match.ports
    return found


def nft_input(ruleset: Ruleset, version: int) -> str:
    table = "ip calico" if version == 4 else "ip6 calico"
    lines = [f"add table {table}"]
    for name, ports in sets_of(ruleset, version).items():
        kind = " . inet_proto . inet_service;" if ports else "; flags interval;"
        lines.append(f"add set {table} {name} {{ type {_ADDRESS[version]}{kind} }}")
    content = rendered(ruleset, version)
    for (_, name), one in content.items():
        if isinstance(one, Map):
            lines.append(f"add map {table} {name} {{ type ifname : verdict; }}")
        elif isinstance(one, Chain):
            hook = ""
            if one.base is not None:
                kind, where, priority = one.base
                hook = f" {{ type {kind} hook {where} priority {priority}; policy accept; }}"
            lines.append(f"add chain {table} {name}{hook}")
    for (_, name), one in content.items():
        if isinstance(one, Chain):
            lines += [f"add rule {table} {name} {rule.text}" for rule in one.rules]
    for (_, name), one in content.items():
        if isinstance(one, Map) and one.elements:
            text = ", ".join(f'"{interface}" : goto {chain}' for interface, chain in one.elements)
            lines.append(f"add element {table} {name} {{ {text} }}")
    return "\n".join(lines) + "\n"


def nft_picture(ns: Namespace) -> dict[str, list[str]]:
    """All of nftables by object, without handles and counters: rules in their order, elements in none."""
    found: dict[str, list[str]] = {}
    for one in json.loads(ns.run("nft", "-j", "-s", "list", "ruleset"))["nftables"]:
        ((kind, body),) = one.items()
        if kind == "metainfo":
            continue
        body.pop("handle", None)
        where = f"{body['family']} {body.get('table', body.get('name'))}"
        if kind == "rule":
            found[f"{where} {body['chain']}"].append(_text(body))
        elif kind in ("set", "map"):
            elements = (text for text in map(_text, body.pop("elem", [])) if "fe80:" not in text)
            found[f"{where} {kind} {body['name']}"] = [_text(body), *sorted(elements)]
        else:
            found[f"{where} {body['name'] if kind == 'chain' else ''}"] = [_text(body)]
    return found


def _text(body: Any) -> str:
    return json.dumps(body, sort_keys=True)
