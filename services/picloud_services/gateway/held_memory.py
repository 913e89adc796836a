"""How much memory the requests of each user hold: bodies that came, answers that are on their way. Pure."""

from collections import Counter

from picloud_jupyter.protocol.errors import Unavailable

MAX_BYTES = 256 * 1024 * 1024  # of one user; more would be other users' memory


class HeldMemory:
    """Counts it; requests without a user are refused ones, of which nothing is kept."""

    def __init__(self) -> None:
        self._bytes: Counter[int | None] = Counter()

    def of(self, user_id: int | None) -> int:
        """Return how many bytes a user's requests hold now."""
        return self._bytes[user_id]

    def take(self, user_id: int | None, size_bytes: int) -> None:
        """Count ``size_bytes`` more.

        Raises:
            Unavailable: it would be too much; nothing was counted.
        """
        if self._bytes[user_id] + size_bytes > MAX_BYTES:
            raise Unavailable(
                f"your requests and their answers would hold more than {MAX_BYTES} bytes of memory",
                hint="Read the answers that are on their way first, or ask for less at once.",
            )
        self._bytes[user_id] += size_bytes

    def give_back(self, user_id: int | None, size_bytes: int) -> None:
        """Count ``size_bytes`` less."""
        self._bytes[user_id] -= size_bytes
        if not self._bytes[user_id]:
            del self._bytes[user_id]
