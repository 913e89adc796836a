"""What must never be written to a log or a report: keys, tokens and passwords. Pure."""

import re

# A password in a URL may hold a slash: SQLAlchemy takes what stands before the next @.
_SECRET = re.compile(
    r"pcj_[\w.]+|(?i:bearer)\s+\S+|(?<=://)[^/\s:@]*:[^\s@]+(?=@)|(?i:(?<=password=))[^&\s\"']+"
)


def scrub(text: str) -> str:
    """Return ``text`` without keys of jobs, bearer tokens and passwords in URLs.

    >>> scrub("opened postgresql://ann:secret@db/jobs")
    'opened postgresql://***@db/jobs'
    """
    return _SECRET.sub("***", text)
