"""The words for bwrap."""

import pytest

from picloud_services.agent.bubblewrap_arguments import isolation, packed
from picloud_services.agent.container import ContainerError


def test_packed_then_each_word_ends_at_a_nul() -> None:
    assert packed(["--dir", "/\udcff"]) == b"--dir\0/\xff"


def test_packed_when_a_value_holds_words_of_its_own_then_refused() -> None:
    words = isolation("/", 1, {"A": "x\0--share-net"})
    with pytest.raises(ContainerError, match="NUL"):
        packed(words)
