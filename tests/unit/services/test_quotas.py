"""What a quota allows, and its words."""

from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import GIB, Resources
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts import quotas
from picloud_services.accounts.quotas import NO_LIMITS, NOTHING, Standing

sizes = st.integers(0, 2**50)
cores = st.integers(0, 64).map(lambda n: n / 5)


def test_own_quota_goes_before_the_settings_and_zero_is_no_limit():
    default = Quota(4, 2 * GIB, 10 * GIB, 5.0)
    assert quotas.in_force(Quota(), default) == default
    assert quotas.in_force(Quota(cores=0, cost=1.0), default) == Quota(
        0, 2 * GIB, 10 * GIB, 1.0
    )


@given(st.lists(cores, max_size=20), cores)
def test_what_may_start_never_exceeds_the_quota(jobs, limit):
    held = NOTHING
    for count in jobs:
        wanted = Resources(count, 0)
        if not quotas.why_not_now(Quota(cores=limit), held, wanted):
            held = Resources(held.cores + count, 0)
    assert not limit or held.cores <= limit + 1e-5


@given(sizes, sizes)
def test_disk_is_full_to_the_byte(limit, size):
    quota = Quota(disk_bytes=limit)
    assert bool(quotas.why_no_room(quota, Standing(), size)) == bool(limit and size > limit)
    assert bool(quotas.why_paused(quota, Standing(disk_bytes=size))) == bool(
        limit and size >= limit
    )


def test_without_limits_everything_may():
    much = Resources(1e6, 2**60)
    assert quotas.why_not_now(NO_LIMITS, much, much) == ""
    assert quotas.why_paused(NO_LIMITS, Standing(1e9, 2**60)) == ""


def test_words_name_quota_use_and_number():
    quota = Quota(cores=2, memory_bytes=4 * GIB, disk_bytes=10 * GIB, cost=3.0)
    words = quotas.why_not_now(quota, Resources(1, 3 * GIB), Resources(1, 2 * GIB))
    assert words == (
        "your jobs hold 3.0 GiB of memory and it needs 2.0 GiB, and your quota is 4.0 GiB"
    )
    assert (
        quotas.why_never(quota, Resources(4, 0))
        == "it needs 4 cores, and your quota is 2 cores"
    )
    assert quotas.why_paused(quota, Standing(3.5, 0)) == (
        "your jobs have cost $3.50, and your quota is $3.00"
    )
    assert "occupy 10.0 GiB of the disk, and your quota is 10.0 GiB" in quotas.why_paused(
        quota, Standing(0.0, 10 * GIB)
    )
