"""What a job wrote in its folder, as one value: a frame whose header lists the files.

``{"t":"files","files":[[path,size_bytes,modified_at],…],"left":[[path,why],…]}`` and the contents one
after another. A runner makes it, so nothing of it is believed: `read_listing` checks every word. Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, FrameError

MAX_FILES = 10_000  # kept of one job
MAX_FILES_BYTES = 1024**3
MAX_LEFT = 1_000  # named of those that were not kept
MAX_LISTING_BYTES = 8 * 1024 * 1024
MAX_PATH_BYTES = 4095
_MOST_SECONDS = 1e11


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One kept file. ``path`` is below the job's folder; ``offset`` is where its bytes begin."""

    path: str
    size_bytes: int
    modified_at: float
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that were kept, and (path, why) of those that were not."""

    files: tuple[WrittenFile, ...] = ()
    left: tuple[tuple[str, str], ...] = field(default=())

    def find(self, path: str) -> WrittenFile | None:
        """Return the file at ``path``."""
        return next((file for file in self.files if file.path == path), None)


def listing_header(files: list[WrittenFile], left: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the header that `read_listing` reads; a job may give its files any time."""
    kept = [[file.path, file.size_bytes, _real_time(file.modified_at)] for file in files]
    return {"t": "files", "files": kept, "left": [list(pair) for pair in left]}


def _real_time(at: float) -> float:
    return max(-_MOST_SECONDS, min(at, _MOST_SECONDS))


def is_plain_path(path: object) -> bool:
    """Return whether ``path`` stays below the folder that it is joined to.

    >>> [is_plain_path(path) for path in ("a/b.txt", "../a", "/a", "a//b", "", ".", 5)]
    [True, False, False, False, False, False, False]
    """
    if not isinstance(path, str) or "\0" in path or len(path) > MAX_PATH_BYTES:
        return False
    if path != _as_text(path):  # a lone surrogate: no text
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def read_listing(header: Mapping[str, Any], header_bytes: int, total_bytes: int) -> Listing:
    """Return what a header of ``header_bytes`` says of a value of ``total_bytes`` in all.

    Raises:
        FrameError: it is not a listing, or its sizes are not those of the value.
    """
    offset = PREFIX.size + header_bytes
    files: list[WrittenFile] = []
    try:
        for path, size_bytes, modified_at in header["files"]:
            if not is_plain_path(path) or type(size_bytes) is not int or size_bytes < 0:
                raise FrameError("a file is listed wrongly")
            if not abs(float(modified_at)) <= _MOST_SECONDS:
                raise FrameError("a file is listed with a time that is none")
            files.append(WrittenFile(path, size_bytes, float(modified_at), offset))
            offset += size_bytes
        left = tuple((_as_text(path), _as_text(why)) for path, why in header["left"])
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise FrameError(f"the list of a job's files is none: {exc}") from None
    if offset != total_bytes:
        raise FrameError("the list of a job's files does not fit its contents")
    return Listing(tuple(files), left)


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text should be")
    return value.encode("utf-8", "replace").decode()


def listing_words(listing: Listing) -> Iterator[str]:
    """Yield a line for each file that was not kept.

    >>> list(listing_words(Listing(left=(("a", "it is a symbolic link"),))))
    ['a is not kept: it is a symbolic link']
    """
    for path, why in listing.left:
        yield f"{path} is not kept: {why}"
