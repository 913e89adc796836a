"""The table of what was tried: as text, on the page docs/reliability.md, and its sums in the README."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.invariants import Violation

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
README = ROOT / "README.md"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one fault."""

    name: str
    count: int
    violations: Sequence[Violation]
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the table: fault, count, violations, figures."""
    lines = ["| fault | count | violations | seen |", "|---|---:|---:|---|"]
    for row in rows:
        seen = "; ".join(f"{name} {text}" for name, text in row.figures.items())
        lines.append(f"| {row.name} | {row.count:,} | {len(row.violations)} | {seen} |")
    return "\n".join(lines)


def sums(rows: Sequence[Row]) -> str:
    """Return the table in one sentence."""
    count = sum(row.count for row in rows)
    broken = sum(len(row.violations) for row in rows)
    kills = sum(row.count for row in rows if row.name.startswith("kill -9"))
    return (
        f"{count:,} faults of {len(rows)} kinds were tried in that run ({kills:,} of them kill -9):"
        f" {broken or 'no'} promise{'' if broken == 1 else 's'} broken."
    )


def write_pages(rows: Sequence[Row], *, seed: int, seconds: float) -> None:
    """Put the table and its sums between the marks of the two pages."""
    how = f"`make soak SEED={seed}`, {seconds / 60:.0f} minutes. {sums(rows)}"
    _replace(PAGE, f"{how}\n\n{as_markdown(rows)}")
    _replace(README, sums(rows))


def _replace(page: Path, text: str) -> None:
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        r"(<!-- faults -->\n).*?(\n<!-- /faults -->)",
        lambda found: f"{found[1]}{text}{found[2]}",
        old,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(
            f"{page} has no place for the table: <!-- faults --> ... <!-- /faults -->"
        )
    page.write_text(new, encoding="utf-8")
