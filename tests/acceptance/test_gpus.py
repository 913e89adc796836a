"""`_gpu`: placed, bound, exclusive, refused; the devices are files that the test makes."""

import glob
import json
import os
import stat
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import ServiceUnderTest, eventually, kinds_of_this_machine

pytestmark = [pytest.mark.isolation, pytest.mark.root]


@pytest.fixture(scope="module", params=kinds_of_this_machine())
def gpu_service(request, tmp_path_factory):
    """A service on a machine that seems to have two GPUs."""
    devices = tmp_path_factory.mktemp("dev")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        os.mknod(devices / name, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (devices / name).chmod(0o666)
    made = ServiceUnderTest(tmp_path_factory.mktemp("home") / "home", request.param)
    made.environment["PICLOUD_GPU_DEVICES"] = str(devices)
    made.start()
    yield made
    made.end()


def look(seconds=0.0):
    begun = time.time()
    time.sleep(seconds)
    return {
        "devices": sorted(os.path.basename(path) for path in glob.glob("/dev/nvidia[0-9]*")),
        "shared": sorted(os.path.basename(path) for path in glob.glob("/dev/nvidia[!0-9]*")),
        "variable": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "span": (begun, time.time()),
    }


def test_a_job_sees_as_many_devices_as_it_asked_for(gpu_service):
    isolated = gpu_service.kind != "plain"  # a plain process has the machine's /dev
    for count in (1, 2):
        found = cloud.result(cloud.call(look, _gpu=count))
        assert found["devices"] == (["nvidia0", "nvidia1"][:count] if isolated else [])
        assert found["shared"] == (["nvidia-uvm", "nvidiactl"] if isolated else [])
        assert found["variable"] == ",".join("01"[:count])


def test_a_job_that_asks_for_none_sees_none(gpu_service):
    found = cloud.result(cloud.call(look))
    assert (found["devices"], found["variable"]) == ([], "")


def test_jobs_never_share_a_device(gpu_service):
    spans = [found["span"] for found in cloud.result(cloud.map(look, [0.4] * 4, _gpu=2))]
    for (_, end), (begun, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        assert begun >= end
    pair = cloud.result(cloud.map(look, [1.0, 1.0], _gpu=1, _kill_process=True))
    assert len({tuple(found["devices"]) or found["variable"] for found in pair}) == 2


def test_a_device_goes_from_one_kind_of_job_to_another(gpu_service):
    for keywords in ({"_gpu": 2}, {"_gpu": 1, "_os_env_vars": {"A": "1"}}, {"_gpu": 2}) * 2:
        assert cloud.result(cloud.call(look, **keywords), timeout=30)


def test_a_job_with_a_gpu_may_wait_for_jobs_with_gpus(gpu_service):
    def parent(child):
        from picloud_jupyter import cloud

        return cloud.result(cloud.call(child, _gpu=1))

    assert cloud.result(cloud.call(parent, look, _gpu=1), timeout=30)["variable"] in ("0", "1")


def test_what_is_taken_is_waited_for_in_words(gpu_service):
    running = cloud.call(time.sleep, 30, _gpu=2)
    eventually(lambda: cloud.status(running) == "processing")
    waiting = cloud.call(look, _gpu=1)
    words = eventually(lambda: cloud.info(waiting, "pilog")[waiting]["pilog"])
    assert "GPUs are taken: it needs 1, 0 are free" in words
    cloud.kill(running)
    assert cloud.result(waiting, timeout=30)


def test_more_than_there_is_is_refused_when_submitting(gpu_service):
    with pytest.raises(cloud.RequestError, match="2 GPUs; _gpu=2 fits") as caught:
        cloud.call(look, _gpu=3)
    assert caught.value.reason == "never_scheduled"


def test_info_and_doctor_tell_of_gpus(gpu_service):
    jid = cloud.call(look, 1.2, _gpu=1)
    cloud.join(jid)
    found = cloud.info(jid, ["gpus", "gpu"])[jid]
    assert found == {"gpus": 1, "gpu.utilization": 0.0, "gpu.memory": 0}  # no NVML here
    assert cloud.info(cloud.call(look), "gpu").popitem()[1]["gpu.memory"] is None
    told = gpu_service.cli("doctor").stdout
    assert "GPUs: 2 (" in told
    assert ("not kept from" in told) is (gpu_service.kind == "plain")
    assert len(json.loads(gpu_service.cli("-o", "json", "doctor").stdout)["gpus"]) == 2


def test_devices_stay_with_a_job_when_the_agent_starts_again(gpu_service):
    jid = cloud.call(look, 3.0, _gpu=1)
    eventually(lambda: cloud.status(jid) == "processing")
    os.kill(gpu_service.status()["agent_pid"], 9)
    both = cloud.call(look, _gpu=2)
    first, second = cloud.result([jid, both], timeout=50)
    assert second["span"][0] >= first["span"][1]
