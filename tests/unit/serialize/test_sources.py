"""Source lines that travel with functions."""

import linecache

from picloud_jupyter.serialize.sources import Source, collect_sources, install_sources


def test_collect_then_install_gives_the_same_lines_at_the_same_numbers():
    def sample():
        first = 1

        def nested():
            return first

        return nested

    (source,) = collect_sources([sample.__code__])
    install_sources([source._replace(file_name="<elsewhere>")])
    line = sample.__code__.co_firstlineno
    assert linecache.getline("<elsewhere>", line).strip() == "def sample():"
    assert linecache.getline("<elsewhere>", line + 4).strip() == "return first"
    assert linecache.getline("<elsewhere>", line - 1) == "\n"


def test_collect_when_there_is_no_source_gives_nothing():
    code = compile("def f(): pass", "<nowhere>", "exec")
    assert collect_sources([code]) == []


def test_install_when_two_functions_share_a_file_keeps_both():
    install_sources([Source("<f>", 5, "five\n"), Source("<f>", 2, "two\n")])
    assert linecache.getline("<f>", 5) == "five\n"
    assert linecache.getline("<f>", 2) == "two\n"
