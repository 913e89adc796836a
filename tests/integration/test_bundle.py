import subprocess
import sys

import pytest

from picloud_services.agent.bundle import make_bundle, remove_unused


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def bundle(home):
    return make_bundle(home)


def test_bundle_when_a_bare_python_uses_it_then_it_needs_nothing_else(bundle):
    script = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        f"sys.path.append({str(bundle)!r})\n"
        "import picloud_jupyter.serialize.payload, picloud_kernels.runner.main, cloudpickle\n"
        "import picloud_jupyter.transport.inside\n"
        "print(*{m.__file__ for n, m in sys.modules.items() if n.startswith(('picloud', 'cloudp'))})"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-s", "-c", script],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=30,
        check=True,
    )
    files = done.stdout.split()
    assert files
    assert all(name.startswith(str(bundle)) for name in files)


def test_bundle_when_it_is_read_then_every_module_has_its_byte_code_and_nobody_may_write(
    bundle,
):
    for path in bundle.rglob("*.py"):
        code = list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
        assert len(code) == 1
        assert code[0].read_bytes()[4:8] == b"\x01\0\0\0", "it is checked against its source"
    for path in [bundle, *bundle.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444)


def test_bundle_when_it_is_made_then_servers_and_tests_stay_out(bundle):
    inside = {path.name for path in (bundle / "picloud_jupyter").iterdir() if path.is_dir()}
    assert inside >= {"protocol", "serialize", "transport", "cloud", "cli"}
    assert not inside & {"server", "magics", "widgets"}


def test_make_when_the_content_is_the_same_then_the_folder_is_the_same(home, bundle):
    before = bundle.stat().st_ctime_ns
    assert make_bundle(home) == bundle
    assert bundle.stat().st_ctime_ns == before
    assert [path.name for path in (home / "bundle").iterdir()] == [bundle.name]


def test_remove_when_a_bundle_is_unused_then_it_alone_goes(home, bundle):
    old = home / "bundle" / "old" / "package"
    old.mkdir(parents=True)
    (old / "module.py").touch(0o444)
    old.chmod(0o555)
    old.parent.chmod(0o555)
    remove_unused(home, {bundle.name})
    assert [path.name for path in (home / "bundle").iterdir()] == [bundle.name]
