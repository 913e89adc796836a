"""How many elements a chunk gets: about a quarter second of work, less at the tail. Pure."""

from picloud_services.dispatch.estimate import Estimate

TARGET_SECONDS = 0.25
TAIL_SECONDS = 0.005  # a smaller piece balances nothing, it only costs
ELEMENT_SECONDS = 20e-6  # what the machinery itself needs for an element
GROWTH = 4
MAX_CHUNK = 1_000


def chunk_size(estimate: Estimate | None, remaining: int, parallel: int) -> int:
    """Return the size of the next chunk, at least 1 and at most ``remaining``.

    ``remaining`` counts the batch's elements not given out yet, ``parallel`` how many runners may
    share them. A function never seen begins with one element and grows with what has ended, so one
    slow element never holds many others.

    >>> chunk_size(None, 10_000, 2)
    1
    >>> chunk_size(Estimate(0.001, 1_000), 10_000, 2)
    250
    >>> chunk_size(Estimate(0.001, 1_000), 40, 2)
    10
    """
    if estimate is None:
        return 1
    cost = max(estimate.seconds, ELEMENT_SECONDS)
    target = TARGET_SECONDS / cost
    share = max(remaining / (2 * max(parallel, 1)), TAIL_SECONDS / cost)
    size = int(min(target, share, estimate.grown * GROWTH, MAX_CHUNK))
    return max(1, min(size, remaining))


def worth_queueing(estimate: Estimate | None, running: int) -> bool:
    """Return whether a chunk may be queued behind one of ``running`` elements in the same runner.

    Worth it where the wait for the next chunk costs more than the balance that is lost.
    """
    return estimate is not None and running * estimate.seconds <= 2 * TARGET_SECONDS


def overdue(estimate: Estimate | None, element_seconds: float) -> bool:
    """Return whether an element has run so long that what waits behind it goes elsewhere."""
    expected = estimate.seconds if estimate else 0.0
    return element_seconds > max(4 * expected, TARGET_SECONDS)
