"""Signals inside the control plane: topics that anybody may listen to.

Publishing calls the listeners at once, on the event loop; a listener must be quick and must not
raise. Topics: ``jobs.changed`` (a sequence: each `jobs.live.Change` of one commit), ``jobs.deleted``
(their jids), ``jobs.output``, ``samples``, ``nodes``.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Listener = Callable[[Any], None]
_log = logging.getLogger(__name__)


class Events:
    """A board of topics. Not thread-safe: used on the loop alone."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = defaultdict(list)

    def listen(self, topic: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each value published on ``topic``; returns how to stop that."""
        self._listeners[topic].append(listener)

        def stop() -> None:
            if listener in self._listeners[topic]:
                self._listeners[topic].remove(listener)

        return stop

    def publish(self, topic: str, value: Any) -> None:  # noqa: ANN401  # each topic has its type
        """Hand ``value`` to every listener of ``topic``; one that raises is logged and skipped."""
        for listener in tuple(self._listeners.get(topic, ())):
            try:
                listener(value)
            except Exception:  # noqa: BLE001  # the top of a loop over strangers
                _log.exception("a listener of %s failed", topic)
