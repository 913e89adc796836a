"""cloud.secret, `picloud secret` and `_secrets`: who gets values, and where they are never seen."""

import contextlib
import io
import json
import os
import pty
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.transport.paths import service_paths
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]

VALUE = "c4nary-4f1d9b-value"


@pytest.fixture(autouse=True)
def secrets(service):
    cloud.secret.set("TOKEN", value=VALUE)
    cloud.secret.set("OTHER", value="another value\nwith two lines")
    yield
    for line in cloud.secret.list():
        cloud.secret.delete(line.name)


def read(*names):
    return [os.environ.get(name) for name in names]


def test_a_job_finds_its_secrets_as_variables_and_no_others():
    seen = cloud.call(read, "TOKEN", "OTHER", _secrets=["TOKEN"])
    assert cloud.result(seen) == [VALUE, None]
    renamed = cloud.call(read, "TOKEN", "PASSWORD", _secrets={"PASSWORD": "OTHER"})
    assert cloud.result(renamed) == [None, "another value\nwith two lines"]


def test_a_job_without_secrets_gets_none_after_one_that_had_some():
    value = cloud.result(cloud.call(lambda: os.environ["TOKEN"], _secrets=["TOKEN"]))
    found = cloud.result(cloud.map(lambda _: dict(os.environ), range(4)))
    assert value == VALUE
    assert not any(VALUE in str(environment) for environment in found)


def test_every_element_of_a_map_and_its_children_processes_have_them():
    def ask(_):
        return subprocess.run(
            ["/bin/sh", "-c", 'printf %s "$TOKEN"'], capture_output=True, text=True, check=True
        ).stdout

    assert cloud.result(cloud.map(ask, range(3), _secrets="TOKEN")) == [VALUE] * 3


def test_a_module_that_reads_it_when_imported_finds_it(tmp_path, monkeypatch):
    (tmp_path / "reads_its_token.py").write_text("import os\nTOKEN = os.environ['TOKEN']\n")
    monkeypatch.setenv("TOKEN", "on the client")
    monkeypatch.syspath_prepend(str(tmp_path))
    import reads_its_token  # type: ignore[import-not-found]

    assert cloud.result(cloud.call(lambda: reads_its_token.TOKEN, _secrets=["TOKEN"])) == VALUE


def test_commands_of_the_shell_have_them_and_their_errors_do_not():
    assert (
        cloud.result(cloud.shell.execute('printf %s "$TOKEN"', _secrets=["TOKEN"]))
        == VALUE.encode()
    )
    failed = cloud.shell.execute('echo "no access with $TOKEN" >&2; exit 3', _secrets=["TOKEN"])
    with pytest.raises(cloud.JobFailed, match=r"no access with \[secret TOKEN\]"):
        cloud.result(failed)


def test_a_changed_value_reaches_new_jobs_in_a_fresh_interpreter():
    def ask():
        import builtins

        before = getattr(builtins, "remembered", None)
        builtins.remembered = os.environ["TOKEN"]
        return before, os.environ["TOKEN"]

    assert cloud.result(cloud.call(ask, _secrets=["TOKEN"]))[1] == VALUE
    assert cloud.secret.set("TOKEN", value="changed").version > 1
    assert cloud.result(cloud.call(ask, _secrets=["TOKEN"])) == (None, "changed")


def test_a_secret_that_is_not_there_is_refused_when_submitting():
    with pytest.raises(cloud.RequestError, match="no secret 'NOPE'; there are: OTHER, TOKEN"):
        cloud.call(read, _secrets=["NOPE"])
    with pytest.raises(cloud.RequestError, match="picloud secret set NOPE"):
        cloud.map(read, ["A"], _secrets={"A": "NOPE"})


def test_a_job_whose_secret_was_deleted_before_it_began_ends_with_words():
    blocker = cloud.call(time.sleep, 60)
    jid = cloud.call(
        read, "TOKEN", _secrets=["TOKEN"], _depends_on=blocker, _depends_on_errors="ignore"
    )
    kept = cloud.call(
        read, "OTHER", _secrets=["OTHER"], _depends_on=blocker, _depends_on_errors="ignore"
    )
    cloud.secret.delete("TOKEN")
    cloud.secret.set("OTHER", value="changed meanwhile")
    cloud.kill(blocker)
    with pytest.raises(cloud.JobStalled, match=r"was deleted before it began.*'TOKEN'"):
        cloud.result(jid, timeout=30)
    assert cloud.info(jid, "reason")[jid]["reason"] == "secret_missing"
    assert cloud.result(kept) == ["changed meanwhile"]


def test_a_running_job_keeps_a_secret_that_is_deleted():
    def hold():

        time.sleep(1)
        return os.environ["TOKEN"]

    jid = cloud.call(hold, _secrets=["TOKEN"])
    eventually(lambda: cloud.status(jid) == "processing")
    cloud.secret.delete("TOKEN")
    assert cloud.result(jid) == VALUE


def test_cached_results_are_those_of_the_same_value():
    def stamp():
        return os.environ["TOKEN"], time.time()

    first = cloud.result(cloud.call(stamp, _secrets=["TOKEN"], _cache=True))
    assert cloud.result(cloud.call(stamp, _secrets=["TOKEN"], _cache=True)) == first
    cloud.secret.set("TOKEN", value="changed")
    assert cloud.result(cloud.call(stamp, _secrets=["TOKEN"], _cache=True))[0] == "changed"


def test_jobs_give_their_jobs_only_secrets_that_they_have():
    def parent(names):
        from picloud_jupyter import cloud

        return cloud.result(cloud.call(read, "TOKEN", "OTHER", _secrets=names))

    assert cloud.result(cloud.call(parent, ["TOKEN"], _secrets=["TOKEN"])) == [VALUE, None]
    assert cloud.result(cloud.call(parent, None, _secrets=["TOKEN"])) == [None, None]
    refused = cloud.call(parent, ["TOKEN", "OTHER"], _secrets=["TOKEN"])
    with pytest.raises(
        cloud.CloudException, match="only the secrets that it has itself, not 'OTHER'"
    ):
        cloud.result(refused)


def test_jobs_cannot_read_or_change_what_is_kept():
    def ask(action):
        from picloud_jupyter import cloud

        return action(cloud.secret)

    for action in (
        lambda secret: secret.list(),
        lambda secret: secret.delete("OTHER"),
        lambda secret: secret.set("OTHER", value="x"),
    ):
        with pytest.raises(cloud.CloudException, match=r"from inside|job"):
            cloud.result(cloud.call(ask, action, _secrets=["TOKEN"]))
    assert [line.name for line in cloud.secret.list()] == ["OTHER", "TOKEN"]


def test_a_job_does_not_copy_a_secret_into_a_plain_variable():
    def parent():
        from picloud_jupyter import cloud

        cloud.call(read, "TOKEN", _os_env_vars=["TOKEN"])

    with pytest.raises(cloud.CloudException, match=r"would show the value of the secret TOKEN"):
        cloud.result(cloud.call(parent, _secrets=["TOKEN"]))


@pytest.mark.parametrize("how", ["message", "key error", "cause", "exit"])
def test_errors_come_back_without_the_value(how):
    def fail(how):
        value = os.environ["TOKEN"]
        if how == "message":
            raise ValueError(f"401 for {value}")
        if how == "exit":
            sys.exit(f"no access with {value}")
        try:
            dict[str, int]()[value]
        except KeyError as exc:
            if how == "cause":
                raise RuntimeError("denied") from exc
            raise

    jid = cloud.call(fail, how, _secrets=["TOKEN"])
    with pytest.raises(cloud.JobFailed) as caught:
        cloud.result(jid)
    told = [str(caught.value), repr(caught.value.__cause__), str(cloud.info(jid, "all"))]
    assert not any(VALUE in text for text in told)
    assert "[secret TOKEN]" in told[0]


def test_values_are_in_no_file_argument_or_environment_outside_of_the_job(service):
    value = "hidden-7c21e8-value"  # which no job of these tests returns
    cloud.secret.set("HIDDEN", value=value)

    def hold():
        time.sleep(1.5)
        return len(os.environ["HIDDEN"])

    jid = cloud.call(hold, _secrets=["HIDDEN"], _label="with a secret")
    eventually(lambda: cloud.status(jid) == "processing")
    places = _processes_that_show(value)
    assert cloud.result(jid) == len(value)
    paths = service_paths()
    files = [
        str(path)
        for folder in (paths.home, paths.run)
        for path in folder.rglob("*")
        if path.is_file() and value.encode() in path.read_bytes()
    ]
    commands = (["info", str(jid)], ["list"], ["secret", "list"], ["-o", "json", "status"])
    shown = [service.cli(*words).stdout for words in commands]
    shown += [str(cloud.info(jid, "all")), repr(cloud.secret.list())]
    assert places == []
    assert files == [str(paths.home / "secrets" / f"{os.getuid()}.json")]
    assert not any(value in text for text in shown)
    assert cloud.info(jid, "secrets")[jid]["secrets"] == {"HIDDEN": "HIDDEN"}


def test_nothing_that_holds_values_leaves_a_core_dump(service):
    status = service.status()
    for pid in (status["pid"], status["agent_pid"]):
        limits = Path(f"/proc/{pid}/limits").read_text()
        line = next(
            line for line in limits.splitlines() if line.startswith("Max core file size")
        )
        assert line.split()[4] in ("0", "1")
    assert cloud.result(cloud.call(lambda: resource.getrlimit(resource.RLIMIT_CORE))) in (
        (0, 0),
        (1, 1),
    )


def _processes_that_show(value: str) -> list[str]:
    """Files of /proc that show ``value`` in what a process was started with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if value.encode() in (process / name).read_bytes():
                    found.append(str(process / name))
    return found


# --------------------------------------------------------------------------- asking for the value
def test_cli_sets_from_standard_input_lists_and_deletes(service):
    assert service.cli("secret", "set", "FROM_INPUT", input=f"{VALUE}\n").stdout == ""
    assert cloud.result(cloud.call(read, "FROM_INPUT", _secrets=["FROM_INPUT"])) == [VALUE]
    listed = json.loads(service.cli("-o", "json", "secret", "list").stdout)
    assert [line["name"] for line in listed] == ["FROM_INPUT", "OTHER", "TOKEN"]
    service.cli("secret", "delete", "FROM_INPUT")
    again = service.cli("secret", "delete", "FROM_INPUT", check=False)
    assert (again.returncode, "no secret 'FROM_INPUT'" in again.stderr) == (3, True)


@pytest.mark.parametrize(
    "words", [["set"], ["delete"], ["list", "NAME"], ["set", "a-b"], ["show", "NAME"]]
)
def test_cli_refuses_wrong_words(service, words):
    assert service.cli("secret", *words, check=False, input=VALUE).returncode == 2


def test_cli_refuses_bytes_that_are_no_text_without_showing_them(service):
    done = subprocess.run(
        [sys.executable, "-m", "picloud_jupyter.cli", "secret", "set", "BINARY"],
        env={**os.environ, **service.environment},
        input=b"hidden\xff\xfe",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"hidden" not in done.stdout + done.stderr
    assert b"base64" in done.stderr


def test_a_terminal_is_asked_and_shows_nothing(service):
    main, terminal = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-c", "from picloud_jupyter import cloud; cloud.secret.set('TYPED')"],
        env={**os.environ, **service.environment},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    while b"TYPED: " not in shown:
        shown += os.read(main, 1000)
    os.write(main, VALUE.encode() + b"\n")
    with contextlib.suppress(OSError):  # the terminal's end
        while data := os.read(main, 1000):
            shown += data
    os.close(main)
    assert asked.wait(30) == 0
    assert VALUE.encode() not in shown
    assert cloud.result(cloud.call(read, "TYPED", _secrets=["TYPED"])) == [VALUE]


def test_where_nobody_can_be_asked_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr("getpass.getpass", lambda _prompt: input())
    with pytest.raises(EOFError, match="picloud secret set NEW"):
        cloud.secret.set("NEW")


def test_a_value_written_into_a_cell_is_warned_of(service):
    code = (
        "from IPython.testing.globalipapp import start_ipython\n"
        "shell = start_ipython()\n"
        "shell.run_cell('import warnings; warnings.simplefilter(\"always\"); from picloud_jupyter import cloud', store_history=True)\n"
        'shell.run_cell(\'cloud.secret.set("IN_CELL", value="abcd-efgh")\', store_history=True)\n'
        'shell.run_cell(\'value = "ab" + "cd"\', store_history=True)\n'
        "shell.run_cell('cloud.secret.set(\"NOT_IN_CELL\", value=value)', store_history=True)\n"
    )
    pytest.importorskip("IPython")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **service.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "the value of IN_CELL stands in this cell" in done.stderr
    assert "NOT_IN_CELL stands" not in done.stderr
