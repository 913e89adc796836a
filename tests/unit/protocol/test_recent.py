from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.recent import RecentKeys


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 5), st.integers(0, 9))
def test_keys_when_both_ends_use_them_alike_then_what_is_left_out_is_still_there(
    uses, limit, before
):
    sender, receiver = RecentKeys[bool](limit), RecentKeys[str](limit)
    for number in range(before):  # the receiver may be older than this connection
        receiver.put(f"old{number}", "x")
    for key in uses:
        if sender.get(key) is None:
            sender.put(key, value=True)
            receiver.put(key, key.upper())
        else:
            assert receiver.get(key) == key.upper()


def test_put_when_the_limit_is_reached_then_the_least_recent_goes():
    keys = RecentKeys[int](2)
    keys.put("a", 1)
    keys.put("b", 2)
    assert keys.get("a") == 1
    keys.put("c", 3)
    assert (keys.get("a"), keys.get("b"), keys.get("c")) == (1, None, 3)
