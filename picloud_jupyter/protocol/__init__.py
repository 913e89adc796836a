"""The words: every value that crosses a process boundary, and nothing that does I/O.

Modules: ``ids`` (jids and their text form), ``jobs`` (statuses, end reasons, specs), ``frames``
(bytes between our own processes), ``links`` (which frames each link carries), ``codec``
(dataclass <-> plain values), ``errors`` (the error tree), ``metrics``, ``nodes``, ``routes``.
"""
