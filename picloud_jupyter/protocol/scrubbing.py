"""What must never be written to a log or a report: keys, tokens and passwords. Pure."""

import re

_SECRET = re.compile(r"pcj_[\w.]+|(?i:bearer)\s+\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def scrub(text: str) -> str:
    """Return ``text`` without keys of jobs, bearer tokens and passwords in URLs.

    >>> scrub("opened postgresql://ann:secret@db/jobs")
    'opened postgresql://***@db/jobs'
    """
    return _SECRET.sub("***", text)
