"""Whose running chunks make room for a user who has used much less. Pure.

What has started is never interrupted: a chunk gives back the elements behind the one that runs. So
the user who starves waits for one element, not for a quarter second of them.
"""

from collections.abc import Mapping

from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import Held, HeldLease, Slot

MARGIN_CORE_SECONDS = 0.5  # users whose use differs by less take turns at the ends of chunks


def chunks_to_cut(assigner: Assigner, now: float) -> list[HeldLease]:
    """Return the leases whose unstarted elements should be taken back for users who starve."""
    if not assigner.starving:
        return []
    holding = assigner.cluster.holding(now)
    levels = {user: _level(assigner, holding, user, now) for user in assigner.starving}
    found: list[HeldLease] = []
    for user in sorted(levels, key=lambda user: (levels[user], user)):
        wanted = assigner.wanted_cores(user)
        for slot in _richer(assigner, holding, levels[user], now):
            if wanted <= 0:
                break
            cut = _to_cut(slot)
            if cut or _gives_way(slot):
                wanted -= slot.wanted.cores
            found += [lease for lease in cut if lease not in found]
    return found


def _level(assigner: Assigner, holding: Mapping[int, Held], user: int, now: float) -> float:
    held = holding.get(user)
    return assigner.fair.level(user, held.core_seconds if held else 0.0, now)


def _richer(
    assigner: Assigner, holding: Mapping[int, Held], level: float, now: float
) -> list[Slot]:
    """Return the slots of users who used much more even without them, shortest elements first."""
    levels = {user: _level(assigner, holding, user, now) for user in holding}
    slots = [
        slot
        for slot in assigner.cluster.slots.values()
        if slot.holding
        and slot.leases
        and not slot.blocked
        and levels[slot.user_id] - slot.core_seconds(now) - level > MARGIN_CORE_SECONDS
    ]
    return sorted(slots, key=lambda slot: (_element_seconds(assigner, slot), slot.slot))


def _element_seconds(assigner: Assigner, slot: Slot) -> float:
    estimate = assigner.estimates.get(slot.leases[0].key)
    return estimate.seconds if estimate else float("inf")


def _to_cut(slot: Slot) -> list[HeldLease]:
    return [
        lease
        for lease in slot.leases
        if lease.sent and not lease.revoked and (lease is not slot.leases[0] or lease.left > 1)
    ]


def _gives_way(slot: Slot) -> bool:
    """Whether it was asked before, and ends with the element that runs."""
    return slot.leases[-1].revoked or (len(slot.leases) == 1 and slot.leases[0].left <= 1)
