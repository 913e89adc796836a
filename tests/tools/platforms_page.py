"""Skips only for what docs/platforms.md says that a kind of container does not promise."""

from pathlib import Path
from typing import NoReturn

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "platforms.md"


def skip_as_the_page_says(words: str) -> NoReturn:
    """Skip this test because ``words`` stand on the page; fail if they do not."""
    assert words in PAGE.read_text(encoding="utf-8"), f"docs/platforms.md does not say: {words}"
    pytest.skip(f"docs/platforms.md says: {words}")
