"""The words about users of a service: what each may use, and what each does use.

Sizes are bytes; costs are in the unit of the core types' prices.
"""

from dataclasses import dataclass, field


def cost_words(cost: float) -> str:
    """Return a cost as people read it; the unit is the dollar.

    >>> cost_words(0.00053), cost_words(3.5), cost_words(12000.0), cost_words(0.0)
    ('$0.00053', '$3.50', '$12,000.00', '$0.00')
    >>> cost_words(6e-10)
    'under $0.0001'
    """
    if 0 < cost < 0.0001:
        return "under $0.0001"
    return f"${cost:.2g}" if 0 < cost < 0.01 else f"${cost:,.2f}"


@dataclass(frozen=True, slots=True)
class Quota:
    """What the jobs of one user may use. None = as the service's settings say, 0 = no limit.

    ``cores`` and ``memory_bytes`` bound what runs at a time, ``disk_bytes`` what arguments, results
    and output occupy together, ``cost`` what all jobs may cost in all.
    """

    cores: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What the jobs of one user use now; ``cost`` and ``core_seconds`` so far, in all."""

    cores: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    cost: float = 0.0
    core_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class UserReport:
    """One user of a service.

    ``own`` is the quota that was set for this user, ``quota`` what holds (0 = no limit). ``counts``
    has a status only where it is not 0.
    """

    user_id: int
    own: Quota
    quota: Quota
    use: Use
    created_at: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
