"""Figures in Prometheus' text format, version 0.0.4. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Labels = Mapping[str, str]


class Metric(NamedTuple):
    """A gauge or a counter: what it means, and its samples.

    A `summary` has no quantiles: its samples say "sum" and "count" under the label `part`.
    """

    name: str
    help: str
    samples: Iterable[tuple[Labels, float]]
    kind: str = "gauge"


def text(metrics: Iterable[Metric]) -> str:
    return "".join(line for metric in metrics for line in _lines(metric))


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    for labels, value in metric.samples:
        shown = dict(labels)
        name = f"{metric.name}_{shown.pop('part')}" if metric.kind == "summary" else metric.name
        inside = ",".join(f'{key}="{told.translate(_ESCAPES)}"' for key, told in shown.items())
        yield f"{name}{'{' + inside + '}' if inside else ''} {value:.15g}\n"
