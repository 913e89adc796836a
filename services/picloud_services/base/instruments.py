"""What the service counts of itself, and the text that Prometheus reads. Pure; any thread may observe."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Labels = Mapping[str, str]


class Histogram:
    """Counts of values up to each bound. One thread observes at a time."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def cumulated(self) -> list[int]:
        """Return how many values were at most each bound, and at last all."""
        found, at_most = [], 0
        for count in self._counts:
            at_most += count
            found.append(at_most)
        return found


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its name without the prefix, what it is, and its samples."""

    name: str
    kind: str  # counter or gauge
    about: str
    samples: Sequence[tuple[Labels, float]]


def gauge(name: str, about: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return Metric(name, "gauge", about, [({}, value)])


def counter(name: str, about: str, value: float) -> Metric:
    """Return a counter without labels; ``name`` ends in _total."""
    return Metric(name, "counter", about, [({}, value)])


def by_label(
    name: str, kind: str, about: str, label: str, values: Mapping[str, float]
) -> Metric:
    """Return a family with one sample for each value of ``label``."""
    return Metric(name, kind, about, [({label: key}, value) for key, value in values.items()])


def exposition(
    metrics: Iterable[Metric], histograms: Iterable[tuple[str, str, Histogram]] = ()
) -> str:
    """Return the text that Prometheus scrapes; ``histograms`` are (name, about, histogram).

    >>> print(exposition([gauge("leases", "Given out.", 2)]), end="")
    # HELP picloud_leases Given out.
    # TYPE picloud_leases gauge
    picloud_leases 2
    """
    lines: list[str] = []
    for metric in metrics:
        name = metric.name if metric.name.startswith("process_") else f"picloud_{metric.name}"
        lines += _head(name, metric.kind, metric.about)
        lines += [f"{name}{_labels(labels)} {_number(v)}" for labels, v in metric.samples]
    for short, about, histogram in histograms:
        name = f"picloud_{short}"
        lines += _head(name, "histogram", about)
        bounds = [*map(_number, histogram.bounds), "+Inf"]
        counts = histogram.cumulated()
        lines += [
            f'{name}_bucket{{le="{bound}"}} {count}'
            for bound, count in zip(bounds, counts, strict=True)
        ]
        lines += [f"{name}_sum {_number(histogram.total)}", f"{name}_count {counts[-1]}"]
    return "".join(f"{line}\n" for line in lines)


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(text)}"' for name, text in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
