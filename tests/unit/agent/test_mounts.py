"""The mount table and paths."""

from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent.mounts import Mount, is_under, outermost, parse_mountinfo

PATHS = st.lists(st.sampled_from(["a", "b", "ab", "c d"]), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


def test_parse_when_paths_have_escapes_then_they_are_plain() -> None:
    text = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        r"40 27 8:1 /sub\134x /data\040disk ro shared:5 master:1 - ext4 /dev/sda1 rw,errors=remount-ro"
        "\nnonsense\n"
    )
    assert parse_mountinfo(text) == [
        Mount("/proc", "/", "proc", ("rw",)),
        Mount("/data disk", "/sub\\x", "ext4", ("rw", "errors=remount-ro")),
    ]


@given(PATHS, PATHS)
def test_is_under_when_parts_are_compared_then_it_agrees(path: str, folder: str) -> None:
    parts = [p for p in path.split("/") if p]
    above = [p for p in folder.split("/") if p]
    assert is_under(path, folder) is (parts[: len(above)] == above)


@given(st.lists(PATHS))
def test_outermost_then_each_path_is_under_exactly_one(paths: list[str]) -> None:
    kept = outermost(paths)
    for path in paths:
        assert sum(is_under(path, folder) for folder in kept) == 1
    assert set(kept) <= set(paths)
