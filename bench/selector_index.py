"""Selectors: parsing, evaluating, and what one change costs in the index, beside brute force.

The cluster: 10,000 pods in 50 namespaces, which they inherit labels from, and 1,000 selectors of the
shapes that policies have. Brute force evaluates every selector against a changed item and every item
against a changed selector, and is given its labels ready to evaluate.

    python bench/selector_index.py [ITEMS SELECTORS]
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from random import Random
from statistics import median, quantiles

from tortie.datastore.selector import ChainLabels, Selector, SelectorIndex, parse

NAMESPACES, APPS = 50, 200
ROUNDS = 300  # of each kind of change; enough for a p99
Index = SelectorIndex[str, int]
Pod = tuple[dict[str, str], list[str]]  # own labels, parents
Pair = tuple[Callable[[], object], Callable[[], object]]  # the same change for the index and by brute force


def main(items: int = 10_000, selectors: int = 1_000) -> None:
    rand = Random(1)
    print(f"{items} items in {NAMESPACES} namespaces, {selectors} selectors\n")
    parsed = language([selector_text(rand, number) for number in range(selectors)], pod(rand)[0])
    pods = {number: pod(rand) for number in range(items)}
    load(pods, parsed, items_first=False)
    index = load(pods, parsed, items_first=True)
    sample = [evaluate_all(parsed.values(), view(pods[number])) for number in range(100)]
    print(f"{'brute force would take':34s}{sum(sample) * items / 100:8.2f} s\n")
    changes(rand, index, pods, parsed)


# --- the cluster ----------------------------------------------------------------------------------


def selector_text(rand: Random, number: int) -> str:
    """The shapes in turn: Kubernetes policy, own namespace, peers, service accounts, negations."""
    namespace = f"projectcalico.org/namespace == 'ns-{rand.randrange(NAMESPACES)}'"
    app = f"app-{rand.randrange(APPS)}"
    if number % 50 == 0:  # every fiftieth can match almost anything, which no index can help
        return f"zone != 'zone-{number % 5}'"
    shapes = [
        f"(projectcalico.org/orchestrator == 'k8s' && app == '{app}') && {namespace}",
        f"({namespace}) && (app == '{app}' || tier in {{'db', 'cache'}})",
        f"pcns.team == 'team-{rand.randrange(10)}' && projectcalico.org/orchestrator == 'k8s'",
        f"(projectcalico.org/serviceaccount in {{'sa-{number % 7}', 'sa-{number % 11}'}}) && {namespace}",
        f"has(app) && app starts with '{app}' && tier != 'web' && {namespace}",
        f"({namespace}) && !(app == '{app}' && has(canary))",
        f"has(role-{number % 97}) || app == '{app}'",
        f"{namespace} && track not in {{'canary', 'beta'}}",
    ]
    return shapes[number % len(shapes)]


def pod(rand: Random) -> Pod:
    namespace = f"ns-{rand.randrange(NAMESPACES)}"
    labels = {
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": f"sa-{rand.randrange(20)}",
        "app": f"app-{rand.randrange(APPS)}",
        "tier": rand.choice(["web", "db", "cache", "batch"]),
        "track": rand.choice(["stable", "canary"]),
        "pod-template-hash": f"{rand.randrange(3000):010x}",
    }
    return labels, [namespace]


def inherited(namespace: str) -> dict[str, str]:
    number = int(namespace.removeprefix("ns-"))
    return {"pcns.projectcalico.org/name": namespace, "pcns.team": f"team-{number % 10}"}


def view(one: Pod) -> ChainLabels:
    own, parents = one
    return ChainLabels(own, *map(inherited, parents))


# --- the measurements -----------------------------------------------------------------------------


def language(texts: list[str], labels: dict[str, str]) -> dict[str, Selector]:
    """Print rates per selector; returns the parsed selectors by name."""
    average = sum(map(len, texts)) // len(texts)
    print(
        f"{f'parse ({average} characters)':34s}{len(texts) / timed(lambda: [*map(parse, texts)]):10,.0f} /s"
    )
    parsed = {f"s{number}": parse(text) for number, text in enumerate(texts)}
    identify = timed(lambda: [one.id for one in parsed.values()])
    print(f"{'canonical text and id':34s}{len(texts) / identify:10,.0f} /s")
    for name, some in (("evaluate", labels), ("evaluate with inheritance", view((labels, ["ns-1"])))):
        spent = median(evaluate_all(parsed.values(), some) for _ in range(20))
        print(f"{name:34s}{len(texts) / spent:10,.0f} /s")
    print()
    return parsed


def load(pods: Mapping[int, Pod], selectors: Mapping[str, Selector], items_first: bool) -> Index:
    """Fill an index in one order or the other and print the time."""
    index: Index = SelectorIndex()

    def put_items() -> None:
        for number in range(NAMESPACES):
            index.update_parent(f"ns-{number}", inherited(f"ns-{number}"))
        for number, (own, parents) in pods.items():
            index.update_item(number, own, parents)

    def put_selectors() -> None:
        for name, selector in selectors.items():
            index.update_selector(name, selector)

    spent = [
        timed(put) for put in ([put_items, put_selectors] if items_first else [put_selectors, put_items])
    ]
    order = "items, then selectors" if items_first else "selectors, then items"
    matches = sum(len(index.items_of(name)) for name in selectors)
    print(f"{f'load {order}':34s}{sum(spent):8.2f} s  ({spent[0]:.2f} + {spent[1]:.2f}; {matches:,} matches)")
    return index


def changes(rand: Random, index: Index, pods: dict[int, Pod], selectors: dict[str, Selector]) -> None:
    views = {number: view(one) for number, one in pods.items()}

    def relabel(label: str, value: str) -> Pair:
        number = rand.randrange(len(pods))
        own, parents = pods[number]
        changed = own | {label: value}
        labels = view((changed, parents))
        return lambda: index.update_item(number, changed, parents), lambda: evaluate_all(
            selectors.values(), labels
        )

    def new_item() -> Pair:
        number, (own, parents) = rand.randrange(1 << 40), pod(rand)
        labels = view((own, parents))
        return lambda: index.update_item(number, own, parents), lambda: evaluate_all(
            selectors.values(), labels
        )

    def new_selector() -> Pair:
        name, one = f"new-{rand.random()}", parse(selector_text(rand, rand.randrange(1, 50)))
        return lambda: index.update_selector(name, one), lambda: [
            one.evaluate(each) for each in views.values()
        ]

    def new_team() -> Pair:
        name = f"ns-{rand.randrange(NAMESPACES)}"
        labels = inherited(name) | {"pcns.team": f"team-{rand.randrange(10)}"}
        children = [views[number] for number, (_own, parents) in pods.items() if parents == [name]]
        return (
            lambda: index.update_parent(name, labels),
            lambda: [evaluate_all(selectors.values(), each) for each in children],
        )

    print(f"{'one change':34s}{'index p50':>12s}{'p99':>12s}{'brute force p50':>18s}{'ratio':>9s}")
    report("an item's app label", lambda: relabel("app", f"app-{rand.randrange(APPS)}"), ROUNDS)
    report("a label nobody looks at", lambda: relabel("note", str(rand.random())), ROUNDS)
    report("a new item", new_item, ROUNDS)
    report("a new selector", new_selector, ROUNDS)
    report(f"a parent's label ({len(pods) // NAMESPACES} items)", new_team, ROUNDS // 10)


def report(name: str, prepare: Callable[[], Pair], rounds: int) -> None:
    """Time both sides of `rounds` prepared changes, in turn; milliseconds."""
    ours, theirs = [], []
    for _ in range(rounds):
        by_index, by_force = prepare()
        ours.append(1e3 * timed(by_index))
        theirs.append(1e3 * timed(by_force))
    p99, ratio = quantiles(ours, n=100)[98], median(theirs) / median(ours)
    print(f"{name:34s}{median(ours):9.3f} ms{p99:9.3f} ms{median(theirs):15.3f} ms{ratio:8.0f}×")


def evaluate_all(selectors: Iterable[Selector], labels: Mapping[str, str]) -> float:
    """Seconds it takes to evaluate all."""
    return timed(lambda: [one.evaluate(labels) for one in selectors])


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
