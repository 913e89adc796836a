"""The runner's pure parts: order of sys.path, its first frame."""

from picloud_jupyter.protocol import frames
from picloud_kernels.runner import main
from picloud_kernels.runner.startup import RunnerConfig, ordered_path


def config(**fields):
    values = {
        "sys_path": ["/u/b", "/u/a"],
        "folder": "/work",
        "home": "/home/picloud",
        "run_dir": "/run/picloud",
        "out_dir": "/run/picloud/out",
        "bundle": "/bundle",
        "code": "/run/picloud/code.zip",
        "marker": "00" * 16,
        "isolated": True,
    }
    return RunnerConfig.from_json({**values, **fields})


def test_ordered_path_is_folder_code_users_path_rest_bundle():
    path = ordered_path(config(), ["/bundle", "/u/a", "/lib"])
    assert path == ["/work", "/run/picloud/code.zip", "/u/b", "/u/a", "/lib", "/bundle"]


def test_ordered_path_when_there_is_no_folder_nor_code_leaves_them_out():
    assert ordered_path(config(folder="", code=None), []) == ["/u/b", "/u/a", "/bundle"]


def test_hello_frame_is_a_frame_with_the_wire_versions_of_the_protocol():
    header, body = frames.split_frame(main.hello_frame(main.open_memory()))
    assert header["t"] == "hello"
    assert header["wire"] == frames.WIRE_VERSION
    assert header["oldest"] == frames.OLDEST_WIRE_VERSION
    assert header["rss_bytes"] > 1_000_000
    assert not body
