"""What is shown of the host: the plan, on invented machines."""

import dataclasses
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import HostPython, SandboxSpec
from picloud_services.agent.binds import Bind, Hide, Link, Overlay, Planner, Step
from picloud_services.agent.container import ContainerError, ContainerRequest
from picloud_services.agent.host_files import HostFiles
from picloud_services.agent.mounts import Mount, is_under

POOL = 2_000_000_001
TOP = [
    "/bin",
    "/etc",
    "/home",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/var",
]


class Machine(HostFiles):
    """Everything exists; links and closed folders are given."""

    def __init__(self, mounts=(), links=None, closed=(), missing=(), unreadable=()) -> None:
        super().__init__([Mount("/", "/", "ext4", ("rw",)), *mounts])
        self._links = links or {}
        self._closed = set(closed)
        self._missing = set(missing)
        self._unreadable = set(unreadable)

    def real(self, path: str) -> str:
        for link, text in self._links.items():
            if is_under(path, link):
                return self.real(
                    posixpath.normpath(
                        posixpath.join(posixpath.dirname(link), text) + path[len(link) :]
                    )
                )
        return path

    def link(self, path: str) -> str | None:
        return self._links.get(path)

    def top(self):
        return [(path, self._links.get(path)) for path in TOP]

    def exists(self, path: str) -> bool:
        return path not in self._missing

    def may_read(self, path: str) -> bool:
        return path not in self._unreadable

    def is_open(self, path: str, uid: int) -> bool:
        return path not in self._closed


def request(uid: int = 0, **spec) -> ContainerRequest:
    python = HostPython("/usr/bin/python3", "/usr", "/usr", "3.11.2")
    full = dataclasses.replace(SandboxSpec(user_id=uid, host_python=python), **spec)
    return ContainerRequest(
        container="c1",
        spec=full,
        run_dir="/run/picloud-1/c/c1/run",
        out_dir="/srv/state/layers/c1/out",
        layer_dir="/srv/state/layers/c1",
        bundle="/srv/state/bundle/d",
        code="",
        stdout_fd=1,
        stderr_fd=2,
        pass_fds=(),
        host_uid=uid or POOL,
        hidden=("/srv/state", "/run/picloud-1"),
    )


def plan(machine: Machine, asked: ContainerRequest, *, root: bool = True) -> dict[str, Step]:
    steps = Planner(asked, machine, own_mounts=root).plan()
    places = [step.target.split("/") for step in steps]
    assert places == sorted(places), "a folder comes before what is inside it"
    return {step.target: step for step in steps}


def environment(prefix: str) -> HostPython:
    return HostPython(f"{prefix}/bin/python", prefix, "/usr", "3.11.2", paths=(prefix, "/usr"))


def test_plan_then_people_s_folders_are_hidden_and_its_own_are_shown() -> None:
    found = plan(Machine(), request())
    for path in ("/root", "/home", "/srv", "/run", "/var/log"):
        assert found[path] == Hide(path)
    assert found["/home/picloud"] == Bind(
        "/home/picloud", "/srv/state/layers/c1/home", writable=True
    )
    assert isinstance(found["/run/picloud"], Bind)
    assert found["/run/picloud/out"] == Bind(
        "/run/picloud/out", "/srv/state/layers/c1/out", writable=True
    )
    assert "/run/picloud/code.zip" not in found


@pytest.mark.parametrize("prefix", ["/root/env", "/home/ann/env", "/tmp/env", "/srv/env"])
@pytest.mark.parametrize("root", [True, False])
def test_plan_when_the_environment_is_hidden_then_it_is_shown_again(
    prefix: str, root: bool
) -> None:
    found = plan(Machine(), request(uid=1000, host_python=environment(prefix)), root=root)
    shown = found[prefix]
    assert isinstance(shown, Bind)
    assert not shown.writable
    assert shown.source == prefix


def test_plan_when_a_folder_above_is_closed_then_it_is_hidden_for_the_pool_uid() -> None:
    machine = Machine(closed=["/opt/lab"])
    found = plan(machine, request(host_python=environment("/opt/lab/env")))
    assert found["/opt/lab"] == Hide("/opt/lab")
    assert found["/opt/lab/env"] == Bind(
        "/opt/lab/env", "/opt/lab/env", recursive=True, asked=True
    )


def test_plan_when_the_environment_itself_is_closed_then_its_owner_is_mapped() -> None:
    machine = Machine(closed=["/opt/env"])
    shown = plan(machine, request(host_python=environment("/opt/env")))["/opt/env"]
    assert isinstance(shown, Bind)
    assert shown.mapped


def test_plan_when_links_lead_through_hidden_folders_then_they_are_made_again() -> None:
    links = {"/root/env": "envs/1", "/root/envs": "/opt/envs", "/usr/bin/python3": "python3.11"}
    python = HostPython("/root/env/bin/python", "/root/env", "/usr", "3.11.2", paths=("/usr",))
    found = plan(Machine(links=links), request(host_python=python))
    assert found["/root/env"] == Link("/root/env", "envs/1")
    assert found["/root/envs"] == Link("/root/envs", "/opt/envs")
    assert "/usr/bin/python3" not in found


def test_plan_when_there_is_a_folder_then_it_is_an_overlay_that_holds_its_environment() -> None:
    asked = request(folder="/root/work", host_python=environment("/root/work/.venv"))
    found = plan(Machine(), asked)
    shown = found["/root/work"]
    assert isinstance(shown, Overlay)
    assert shown.mapped
    assert "/root/work/.venv" not in found


@pytest.mark.parametrize("folder", ["/", "/home", "/run", "/proc/1", "/dev"])
def test_plan_when_the_folder_holds_what_is_the_container_s_own_then_it_is_not_shown(
    folder: str,
) -> None:
    links = {"/home/ann/link": folder, "/var/run": "/run"}
    for name in (folder, "/home/ann/link", "/var/run"):
        found = plan(Machine(links=links), request(folder=name))
        assert not any(isinstance(step, Overlay) for step in found.values())
    found = plan(Machine(links=links), request(folder="/home/ann/link"))
    assert found["/home/ann/link"] == Link("/home/ann/link", folder)


def test_plan_when_the_folder_is_etc_then_owners_are_not_mapped() -> None:
    shown = plan(Machine(), request(folder="/etc/x"))["/etc/x"]
    assert isinstance(shown, Overlay)
    assert not shown.mapped


def test_plan_when_the_folder_is_in_var_tmp_then_its_owner_may_write_there() -> None:
    found = plan(Machine(), request(folder="/var/tmp/work"))["/var/tmp/work"]
    assert isinstance(found, Overlay)
    assert found.mapped


def test_plan_when_a_disk_is_mounted_in_the_folder_then_it_is_kept_or_all_is_read_only() -> (
    None
):
    machine = Machine([Mount("/data/disk", "/", "xfs", ("rw",))])
    root = plan(machine, request(folder="/data"))
    assert isinstance(root["/data"], Overlay)
    assert isinstance(root["/data/disk"], Bind)
    user = plan(machine, request(uid=1000, folder="/data"), root=False)
    assert user["/data"] == Bind("/data", "/data", recursive=True, asked=True)


def test_plan_when_other_file_systems_are_mounted_in_the_folder_then_those_are_shown_too() -> (
    None
):
    mounts = [
        Mount("/home/ann/disk", "/", "ext4", ("rw",)),
        Mount("/home/ann/net", "/", "nfs4", ("rw",)),
        Mount("/home/ann/chroot/proc", "/", "proc", ("rw",)),
        Mount("/home/ann/bobs", "/", "fuse.sshfs", ("rw",)),
        Mount("/srv/state/blobs", "/", "xfs", ("rw",)),
        Mount("/var/log/net", "/", "nfs4", ("rw",)),
    ]
    machine = Machine(mounts, unreadable=["/home/ann/bobs"])
    found = plan(machine, request(uid=1000, folder="/home/ann"))
    for path in ("/home/ann/disk", "/home/ann/net"):
        assert found[path] == Bind(path, path, asked=True)
    assert "/home/ann/chroot/proc" not in found
    assert "/home/ann/bobs" not in found
    assert "/srv/state/blobs" not in plan(machine, request(uid=1000, folder="/srv"))
    assert "/var/log/net" not in plan(machine, request(uid=1000, folder="/var"))


def test_plan_when_a_disk_is_mounted_in_the_service_s_folder_then_it_is_not_shown() -> None:
    machine = Machine([Mount("/data/state/blobs", "/", "xfs", ("rw",))])
    asked = dataclasses.replace(request(uid=1000), hidden=("/data/state",))
    found = plan(machine, asked)
    assert found["/data/state"] == Hide("/data/state")
    assert "/data/state/blobs" not in found


def test_plan_when_a_closed_folder_is_opened_up_then_other_disks_in_it_stay_closed() -> None:
    mounts = [Mount(f"/opt/lab/{name}", "/", "xfs", ("rw",)) for name in ("env", "secret")]
    machine = Machine(mounts, closed=["/opt/lab"])
    found = plan(machine, request(host_python=environment("/opt/lab/env/1")))
    assert found["/opt/lab"] == Hide("/opt/lab")
    assert isinstance(found["/opt/lab/env/1"], Bind)
    assert "/opt/lab/secret" not in found


def test_plan_when_the_folder_is_on_a_network_disk_then_only_it_is_shown() -> None:
    machine = Machine([Mount("/net", "/", "nfs4", ("rw",))])
    found = plan(machine, request(folder="/net/ann/work"))
    assert "/net" not in found
    assert isinstance(found["/net/ann/work"], Overlay)


@pytest.mark.parametrize("root", [True, False])
def test_plan_when_the_service_is_inside_the_folder_then_it_is_hidden_there(root: bool) -> None:
    asked = dataclasses.replace(
        request(uid=1000, folder="/home/ann"), hidden=("/home/ann/.local/picloud", "/run/p")
    )
    found = plan(Machine(), asked, root=root)
    assert found["/home/ann/.local/picloud"] == Hide("/home/ann/.local/picloud")
    assert "/run/p" not in found, "it is in a hidden folder already"


@pytest.mark.parametrize("path", ["/opt/env", "/usr/bin/python3", "/work"])
def test_plan_when_something_is_missing_then_it_is_named(path: str) -> None:
    python = dataclasses.replace(environment("/opt/env"), executable="/usr/bin/python3")
    with pytest.raises(ContainerError, match=path) as raised:
        plan(Machine(missing=[path]), request(folder="/work", host_python=python))
    assert raised.value.reason == "env_missing"


def test_plan_when_home_is_a_link_then_its_target_is_hidden() -> None:
    found = plan(Machine(links={"/home": "var/home"}), request())
    assert found["/var/home"] == Hide("/var/home")
    assert "/var/home/picloud" in found


@pytest.mark.parametrize("root", [True, False])
def test_plan_when_a_volume_holds_the_service_then_it_is_hidden_where_the_volume_is(
    root: bool,
) -> None:
    asked = request(uid=1000, volumes=(("/srv", "/data/all", "ro"),))
    assert plan(Machine(), asked, root=root)["/data/all/state"] == Hide("/data/all/state")


@pytest.mark.parametrize("root", [True, False])
def test_plan_when_the_volume_is_the_whole_host_then_the_service_is_hidden_there(
    root: bool,
) -> None:
    asked = request(uid=1000, volumes=(("/", "/host", "ro"),))
    found = plan(Machine(), asked, root=root)
    assert found["/host/srv/state"] == Hide("/host/srv/state")
    assert found["/host/run/picloud-1"] == Hide("/host/run/picloud-1")


@pytest.mark.parametrize("path", ["/srv/state", "/srv/state/blobs"])
def test_plan_when_the_service_itself_is_asked_for_then_it_is_refused(path: str) -> None:
    for asked in (request(folder=path), request(volumes=((path, "/v", "rw"),))):
        with pytest.raises(ContainerError, match="belongs to the service"):
            plan(Machine(), asked)


PLACES = st.sampled_from(
    ["/root/a", "/root/a/b", "/home/ann", "/home/ann/x", "/opt", "/opt/x", "/data", "/data/x"]
)


@given(
    folder=PLACES, prefix=PLACES, volume=PLACES, root=st.booleans(), uid=st.sampled_from([0, 7])
)
def test_plan_whatever_is_asked_then_the_service_is_never_shown(
    folder: str, prefix: str, volume: str, root: bool, uid: int
) -> None:
    hidden = ("/root/a/service", "/home/ann/service", "/opt/x/service", "/data/service")
    asked = request(
        uid=uid,
        folder=folder,
        host_python=environment(prefix),
        volumes=((volume, volume, "rw"),),
    )
    asked = dataclasses.replace(asked, hidden=hidden)
    found = plan(Machine(), asked, root=root or uid == 0)
    for path in hidden:
        above = [step for step in found.values() if is_under(path, step.target)]
        nearest = max(above, key=lambda step: len(step.target), default=None)
        if nearest is None:
            assert uid != 0, "the base shows what no step covers"
            assert not root
        else:
            assert isinstance(nearest, Hide), (path, nearest)
