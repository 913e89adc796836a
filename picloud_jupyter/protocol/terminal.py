r"""Words of jobs on terminals: colours pass, and what would steer the terminal is made visible. Pure.

A job may print what it likes. On a terminal some of it would write to the clipboard, change the
title, hide where a link leads, or overwrite what was shown before.
"""

import re

_STEERING = re.compile(
    rb"\x1b\[[0-9;:]*[mK]"  # colours, and the end of a line that a progress bar rewrites
    rb"|([\x00-\x07\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f])"
)
_BEGUN = re.compile(rb"(?:\x1b(?:\[[0-9;:]{0,32})?|\xc2)\Z")  # how that may be cut


class TerminalFilter:
    r"""Makes what a job printed safe to show, however its bytes are cut.

    >>> shown = TerminalFilter()
    >>> shown.feed(b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2"), shown.feed(b"J"), shown.finish()
    (b'\x1b[31mred\x1b[0m ^[]0;title^G ', b'^[[2J', b'')
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be shown of ``data`` now."""
        data = self._held + data
        begun = _BEGUN.search(data)
        self._held = data[begun.start() :] if begun else b""
        return _STEERING.sub(_visible, data.removesuffix(self._held))

    def finish(self) -> bytes:
        """Return what was held back: nothing more comes."""
        held, self._held = self._held, b""
        return _STEERING.sub(_visible, held)


def safe_text(text: str) -> str:
    r"""Return ``text`` as a terminal may show it, in lines as it is.

    >>> safe_text("\x1b[1mbold\x1b[0m\n\x1b]8;;http://x\x07link")
    '\x1b[1mbold\x1b[0m\n^[]8;;http://x^Glink'
    """
    data = text.encode("utf-8", "surrogatepass")
    return _STEERING.sub(_visible, data).decode("utf-8", "surrogatepass")


def one_line(text: str) -> str:
    r"""Return ``text`` with everything that is no printable character as an escape: names, labels.

    >>> one_line("a\x1b[2J\u202egnp.exe\0é")
    'a\\x1b[2J\\u202egnp.exe\\x00é'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _visible(found: re.Match[bytes]) -> bytes:
    control = found[1]
    if control is None:
        return found[0]
    return b"^" + bytes([control[-1] ^ 0x40 if len(control) == 1 else control[-1] - 0x40])
