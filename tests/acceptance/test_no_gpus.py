"""`_gpu` on a machine without a GPU."""

import glob

import pytest

from picloud_jupyter import cloud

pytestmark = pytest.mark.isolation


def test_where_there_is_no_gpu_it_is_refused_in_words(service):
    if glob.glob("/dev/nvidia[0-9]*"):
        pytest.skip("this machine has one")
    with pytest.raises(cloud.RequestError, match="no machine here has one") as caught:
        cloud.call(len, [], _gpu=1)
    assert caught.value.reason == "never_scheduled"
    assert "there is no /dev/nvidia0" in service.cli("doctor").stdout
