"""Finds what only Python 2 understood in a program, and writes the modern line. Pure.

A program of Python 2 can be neither parsed nor tokenized by Python 3, so lines are read one by one;
strings and comments are set aside first, so that nothing in them is taken for code.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DIVISION = (
    "Mind also that / of two whole numbers gives a fraction now; // is what / was in Python 2."
)

# A string becomes \0N\0 and a comment \1N\1, both one piece per line.
_ASIDE = re.compile(
    r"(?P<comment>#[^\n]*)"
    r"|(?P<string>(?P<triple>\"\"\"|''')(?:\\[\s\S]|(?!(?P=triple))[^\\])*(?P=triple)"
    r"|\"(?:\\[\s\S]|[^\"\\\n])*\"|'(?:\\[\s\S]|[^'\\\n])*')"
)
_MARK = re.compile("([\0\1])(\\d+)\\1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is of Python 2 in ``line`` (from 1): the line as it is, as it should be, and why."""

    line: int
    old: str
    modern: str
    words: str


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    modern: str | Callable[[re.Match[str]], str]
    words: str


def explain(source: str) -> list[Finding]:
    r"""Return what is of Python 2 in ``source``, in the order of its lines.

    >>> [(f.line, f.modern) for f in explain('x = 1\nprint "a", x\n')]
    [(2, 'print("a", x)')]
    """
    kept: list[str] = []
    found: list[Finding] = []
    plain = source.replace("\0", " ").replace("\1", " ")  # our marks; no program has them
    masked = _ASIDE.sub(lambda match: _set_aside(match, kept), plain)
    for number, line in enumerate(masked.split("\n"), 1):
        modern, words = _modernise(line)
        if words:
            old, new = (_put_back(text, kept).strip() for text in (line, modern))
            found.append(Finding(number, old, new, "; ".join(words)))
    return found


def explain_line(source: str, line: int) -> Finding | None:
    """Return what is of Python 2 in one line of ``source``."""
    return next((finding for finding in explain(source) if finding.line == line), None)


def describe(path: str, findings: list[Finding]) -> str:
    """Return the findings for people, each with file and line."""
    blocks = [
        f"{path}:{finding.line}: {finding.words}\n    {finding.old}\n  now:\n    {finding.modern}"
        for finding in findings
    ]
    return "\n".join(blocks)


def _modernise(line: str) -> tuple[str, list[str]]:
    words = []
    for rule in _RULES:
        changed = rule.pattern.sub(rule.modern, line)
        if changed != line:
            line = changed
            words.append(rule.words)
    return line, words


def _set_aside(match: re.Match[str], kept: list[str]) -> str:
    mark = "\1" if match["comment"] else "\0"
    pieces = match[0].split("\n")
    first = len(kept)
    kept += pieces
    return "\n".join(f"{mark}{number}{mark}" for number in range(first, len(kept)))


def _put_back(text: str, kept: list[str]) -> str:
    return _MARK.sub(lambda match: kept[int(match[2])], text)


# --------------------------------------------------------------------------------- statements
def _print(match: re.Match[str]) -> str:
    rest = match["rest"].strip()
    end = match["end"] or ""
    if _is_one_group(rest):  # print(...) as it is in Python 3
        return match[0]
    options = ""
    if rest.startswith(">>"):
        stream, _, rest = rest[2:].partition(",")
        options = f", file={stream.strip()}"
        rest = rest.strip()
    if rest.endswith(","):
        rest, options = rest[:-1].rstrip(), f'{options}, end=" "'
    if rest.endswith("\\") or rest.count("(") > rest.count(")"):
        return f"{match['head']}print({rest}  ...and the closing parenthesis after its last line{end}"
    return f"{match['head']}print({(rest + options).removeprefix(', ')}){end}"


def _is_one_group(text: str) -> bool:
    """Return whether ``text`` is one pair of parentheses with all else inside it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return letter == ")" and text[0] == "(" and place == len(text) - 1
    return text.startswith("(")  # it goes on in the next line


def _raise(match: re.Match[str]) -> str:
    trace = f".with_traceback({match['trace'].strip()})" if match["trace"] else ""
    return f"raise {match['type']}({match['value'].strip()}){trace}{match['end'] or ''}"


def _exec(match: re.Match[str]) -> str:
    code, _, names = match["rest"].partition(" in ")
    inside = f"{code.strip()}, {names.strip()}" if names else code.strip()
    return f"{match['head']}exec({inside}){match['end'] or ''}"


_HEAD = r"(?P<head>^\s*|[:;]\s*)"
_REST = r"(?P<rest>[^;\x01]*?)(?P<end>\s*(?:;|\x01|$))"
_STATEMENTS = [
    _Rule(
        re.compile(_HEAD + r"print\b(?!\s*[=.,)\]:])" + _REST), _print, "print is a function"
    ),
    _Rule(
        re.compile(r"\bexcept\s+(?P<types>[\w.]+|\([^)]*\))\s*,\s*(?P<name>\w+)\s*:"),
        r"except \g<types> as \g<name>:",
        "an exception is named with `as`",
    ),
    _Rule(
        re.compile(
            r"\braise\s+(?P<type>[\w.]+)\s*,\s*(?P<value>[^,;\x01]+)(?:,(?P<trace>[^;\x01]+))?(?P<end>\s*(?:;|\x01|$))"
        ),
        _raise,
        "an exception is called with its message",
    ),
    _Rule(re.compile(_HEAD + r"exec\s+(?!\()" + _REST), _exec, "exec is a function"),
    _Rule(re.compile(r"`([^`]+)`"), r"repr(\1)", "backticks are written repr(...)"),
    _Rule(re.compile(r"<>"), "!=", "<> is written !="),
    _Rule(
        re.compile(r"(?<![\w.])0(?=[0-7]*[1-7])([0-7]+)(?![\w.])"),
        r"0o\1",
        "octal numbers begin with 0o",
    ),
    _Rule(
        re.compile(r"(?<![\w.])(\d+|0[xX][0-9a-fA-F]+)[lL]\b"),
        r"\1",
        "every int is long, without an L",
    ),
    _Rule(re.compile(r"\b[uU]([rR])(?=\0)"), r"\1", "every string is Unicode, without a u"),
    _Rule(
        re.compile(
            r"(\bdef\s+\w+\s*\((?:[^()=]*,)?\s*|\blambda\s+(?:[^():=]*,)?\s*)\(([\w\s,]+)\)"
        ),
        r"\1pair",
        "a parameter cannot be a tuple: take it apart in the body",
    ),
]

# ---------------------------------------------------------------------- names that have gone
_NAMES = {
    "xrange": "range",
    "raw_input": "input",
    "unicode": "str",
    "basestring": "str",
    "long": "int",
    "unichr": "chr",
    "reduce": "functools.reduce",
    "reload": "importlib.reload",
    "execfile": "runpy.run_path",
    "file": "open",
    "StandardError": "Exception",
}
_MODULES = {
    "urllib2": "urllib.request",
    "urlparse": "urllib.parse",
    "ConfigParser": "configparser",
    "Queue": "queue",
    "StringIO": "io",
    "cStringIO": "io",
    "cPickle": "pickle",
    "Tkinter": "tkinter",
    "httplib": "http.client",
    "HTMLParser": "html.parser",
    "cookielib": "http.cookiejar",
    "commands": "subprocess",
    "SocketServer": "socketserver",
    "xmlrpclib": "xmlrpc.client",
    "__builtin__": "builtins",
}
_ATTRIBUTES = {
    r"\.iteritems\(\)": ".items()",
    r"\.iterkeys\(\)": ".keys()",
    r"\.itervalues\(\)": ".values()",
    r"\bstring\.(letters|lowercase|uppercase)\b": r"string.ascii_\1",
    r"\bstring\.maketrans\b": "str.maketrans",
    r"\bstring\.join\(([^(),]+),\s*([^(),]+)\)": r"\2.join(\1)",
    r"\bsys\.maxint\b": "sys.maxsize",
    r"\bos\.getcwdu\b": "os.getcwd",
    r"\bitertools\.i(zip|map|filter)\b": r"\1",
    r"\burllib\.(urlopen|urlretrieve)\b": r"urllib.request.\1",
    r"\burllib\.(quote|unquote|urlencode|quote_plus|unquote_plus)\b": r"urllib.parse.\1",
    r"([\w.]+)\.next\(\)": r"next(\1)",
}
_RENAMES = [
    _Rule(
        re.compile(r"([\w.\[\]]+)\.has_key\(([^()]*)\)"),
        r"\2 in \1",
        "has_key is written `in`",
    ),
    *(
        _Rule(
            re.compile(rf"(?<![\w.]){name}\b(?=\s*\(|\s*[,)\]]|\s*$)(?!\s*=)"),
            modern,
            f"{name} is {modern} now",
        )
        for name, modern in _NAMES.items()
    ),
    *(
        _Rule(
            re.compile(
                rf"^(\s*import\b[^\x01]*?(?<![\w.])|\s*from\s+){name}\b|(?<![\w.]){name}(?=\.\w)"
            ),
            rf"\g<1>{modern}",
            f"the module {name} is {modern} now",
        )
        for name, modern in _MODULES.items()
    ),
    *(
        _Rule(re.compile(old), modern, "it has another name now")
        for old, modern in _ATTRIBUTES.items()
    ),
]
_RULES = [*_STATEMENTS, *_RENAMES]

# ------------------------------------------------------------------- PiCloud's own old idioms
_OLD_API = {
    r"\bcloud\.cloud\b": "write cloud.CloudException: the inner module cloud.cloud is gone",
    r"\bcloud\.files\b": "cloud.files is gone; what a job writes is kept by itself: cloud.files_of(jid)",
    r"\b_callback\s*=.*\bcloud\.map\b|\bcloud\.map\(.*\b_callback": "cloud.map takes no _callback; loop over cloud.iresult(jids)",
    r"\bmax_transmit_data\b": "cloud.config.max_transmit_data is a guard of 256 MB now, and may be set higher",
    r"\bcloud\.setkey\(": "cloud.setkey is for a service on another machine; this machine's needs no key",
    r"\b_env\s*=": "saved environments do not exist here: a job sees the Python and packages that you see",
}


def explain_old_api(line: str) -> Iterator[str]:
    """Yield what to write instead of PiCloud's idioms in ``line`` that have changed.

    >>> list(explain_old_api("except cloud.cloud.CloudException:"))
    ['write cloud.CloudException: the inner module cloud.cloud is gone']
    """
    for pattern, words in _OLD_API.items():
        if re.search(pattern, line):
            yield words
