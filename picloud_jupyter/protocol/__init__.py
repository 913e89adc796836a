"""The words: every value that crosses a process boundary, and nothing that does I/O.

Modules: ``ids`` (jids and their text form), ``jobs`` (statuses, end reasons, specs), ``frames``
(bytes between our own processes; docs/internals.md says which link carries which), ``codec``
(dataclass <-> plain values), ``errors`` (the error tree), ``routes``; the others have one noun each.
"""
