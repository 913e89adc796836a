"""The README's two commands on machines with python3 and git alone: fresh Debians."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.root]

ROOT = Path(__file__).resolve().parents[2]
# How this machine reaches its package registries; a fresh machine has its own way.
NETWORK_FILES = (
    "etc/resolv.conf",
    "etc/hosts",
    "etc/pip.conf",
    "etc/ssl/certs/ca-certificates.crt",
)
NETWORK_FOLDERS = (
    "etc/xdg/pip",
    "root/.config/pip",
    "etc/apt/apt.conf.d",
    "etc/apt/sources.list.d",
    "usr/local/share/ca-certificates",
)
NETWORK_VARIABLES = (
    "PIP_",
    "SSL_",
    "REQUESTS_",
    "CURL_",
    "HTTP",
    "http",
    "no_proxy",
    "NO_PROXY",
)


def inside(chroot: Path, command: str, **options):
    variables = {k: v for k, v in os.environ.items() if k.startswith(NETWORK_VARIABLES)}
    variables |= {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    # Its root is changed by pivot_root: the kernel refuses user namespaces in a mere chroot. The
    # shell stays as the first process, which buries what nobody waits for.
    enter = (
        f"mount --rbind {chroot} {chroot} && cd {chroot} && mount --rbind /sys sys && "
        "mount --rbind /dev dev && mount -t proc proc proc && mount -t tmpfs tmpfs run && "
        "mkdir -p run/outside && pivot_root . run/outside && umount -l /run/outside && "
    )
    return subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c"),
            f'{enter} cd / && /bin/sh -c "$0"; exit $?',
            command,
        ],
        env=variables,
        text=True,
        capture_output=True,
        timeout=2700,
        check=False,
        **options,
    )


@pytest.fixture(scope="module", params=["bookworm", "trixie"])  # Python 3.11 and 3.13
def bare_debian(request, tmp_path_factory):
    if not shutil.which("mmdebstrap"):
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "mmdebstrap"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    chroot = tmp_path_factory.mktemp("bare") / "debian"
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=python3,git,ca-certificates",
            request.param,
            str(chroot),
        ],
        check=True,
        timeout=600,
    )
    for name in NETWORK_FILES:
        if (Path("/") / name).is_file():
            (chroot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f"/{name}", chroot / name)
    for name in NETWORK_FOLDERS:
        if (Path("/") / name).is_dir():
            shutil.copytree(f"/{name}", chroot / name, dirs_exist_ok=True)
    clone = ["git", "clone", "--quiet", "--no-local", str(ROOT), str(chroot / "project")]
    subprocess.run(clone, check=True)
    yield chroot
    shutil.rmtree(chroot, ignore_errors=True)


@pytest.mark.timeout(1800)
def test_primer_runs_on_a_machine_with_python_and_git_alone(bare_debian):
    done = inside(bare_debian, "cd /project && python3 run.py primer")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "pi is about 3.14" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "GridSearchCV agrees" in done.stdout
    assert "[a picture, image/png" in done.stdout


@pytest.mark.timeout(1800)
def test_doctor_tells_what_a_bare_machine_has(bare_debian):
    """No bwrap but the wheel's, no pasta."""
    tour = "cd /project && python3 run.py check >/dev/null; cd /tmp && /project/.venv/bin/python /project/tests/machines/tour.py"
    done = inside(bare_debian, tour)
    assert done.stdout.startswith("{"), done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["failed"], said["left"]) == ({}, [])
    assert said["doctor"]["container_kind"] == "root"
    assert said["doctor"]["network"] == "proxy"
    assert "sudo apt install passt" in said["doctor"]["network_note"]
    assert said["seen"]["capabilities"] == 0


@pytest.mark.timeout(3000)
def test_tests_pass_on_a_machine_with_python_and_git_alone(bare_debian):
    done = inside(bare_debian, "cd /project && CI=true python3 run.py test")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
