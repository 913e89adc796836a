"""Trees of processes."""

from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent.process_table import ProcessLine, descendants


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 30))
def test_descendants_then_each_has_the_root_above_it_and_no_other_does(
    parents: list[int], root: int
) -> None:
    table = {pid: ProcessLine(parent, "S", 0) for pid, parent in enumerate(parents, 1)}
    found = descendants(table, [root])

    def is_below(pid: int) -> bool:
        seen: set[int] = set()
        while pid in table and pid not in seen:
            if pid == root:
                return True
            seen.add(pid)
            pid = table[pid].parent
        return False

    assert found == {pid for pid in table if is_below(pid)}
