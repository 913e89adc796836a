"""Cells that run on: interrupted, in the background, attached, of kernels that are gone."""

import os
import subprocess
import sys
import time

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from tests.tools.live_kernel import kernel_with_magics, last_info, last_jid
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.timeout(120)]
SLEEPS = "import time\nprint('begun', flush=True)\ntime.sleep(60)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def kernel(service, folder):
    with kernel_with_magics(folder) as kernel:
        yield kernel


@pytest.fixture
def other(service, folder):
    with kernel_with_magics(folder) as kernel:
        yield kernel


# ------------------------------------------------------------------------------------- interrupt
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_cancels_the_job_and_says_so(kernel, times):
    request = kernel.start(f"%%picloud\n{SLEEPS}")
    kernel.listen(request, lambda ran: "begun" in ran.stdout)
    begun = time.monotonic()
    for _ in range(times):
        kernel.interrupt()
        time.sleep(0.005)  # all of them while the job is being cancelled
    ran = kernel.finish(request)
    seconds = time.monotonic() - begun
    jid = last_jid(kernel)
    assert ran.reply["ename"] == "KeyboardInterrupt"
    assert f"job {jid} was cancelled" in ran.traceback
    assert len(ran.reply["traceback"]) == 1
    assert cloud.status(jid) == "killed"
    assert seconds < 4.0  # 1 s where nothing else runs
    assert kernel.run("1 + 1").check().value == "2"


# ---------------------------------------------------------------------------- in the background
SLOW = (
    "%%picloud --nowait\nimport time\nfor i in range(3):\n    print('line', i, flush=True)\n"
    "    time.sleep(0.6)\nslow = 'came back'"
)


def last_html(kernel, request):
    display_id = next(
        content["transient"]["display_id"]
        for kind, content in kernel.ran[request].messages
        if kind == "display_data"
    )
    found = ""
    for ran in kernel.ran.values():
        for kind, content in ran.messages:
            if (
                kind == "update_display_data"
                and content["transient"]["display_id"] == display_id
            ):
                found = content["data"]["text/html"]
    return found


def test_nowait_writes_into_its_own_cell_alone(kernel):
    first = kernel.start(SLOW)
    kernel.finish(first).check()
    others = [kernel.run(f"import time; time.sleep(0.5); print({i})").check() for i in range(4)]
    eventually(lambda: (kernel.run("0"), "is done" in last_html(kernel, first))[1])
    for i, ran in enumerate(others):
        assert ran.stdout == f"{i}\n"
        assert not ran.bundles("display_data")
    assert "line 0\nline 1\nline 2\n" in last_html(kernel, first)
    assert kernel.value("'slow' in globals()") is False
    kernel.run("%picloud result").check()
    assert kernel.value("slow") == "came back"


def test_nowait_gives_a_handle(kernel):
    kernel.run("%%picloud --nowait\nvalue = 6 * 7").check()
    kernel.run("job = _")
    found = kernel.value("[int(job), job.result(), job.status()]")
    assert found == [last_jid(kernel), {"value": 42}, "done"]
    assert kernel.value("value") == 42
    kernel.run("%%picloud --nowait\nimport time\ntime.sleep(60)").check()
    kernel.run("_.kill()").check()
    eventually(lambda: cloud.status(last_jid(kernel)) == "killed")
    kernel.run("%%picloud --nowait\n1 / 0").check()
    ran = kernel.run("%picloud result")
    assert ran.reply["ename"] == "ZeroDivisionError"
    assert "waits for the files" in kernel.run("%%picloud --nowait --fetch x\n1").stderr


def test_an_interrupted_attach_leaves_the_job_alone(kernel):
    kernel.run(f"%%picloud --nowait\n{SLEEPS}").check()
    request = kernel.start("%picloud attach")
    kernel.listen(request, lambda ran: "begun" in ran.stdout)
    kernel.interrupt()
    ran = kernel.finish(request)
    jid = last_jid(kernel)
    assert f"job {jid} goes on" in ran.traceback
    assert cloud.status(jid) == "processing"
    assert f"job {jid}: killed" in kernel.run("%picloud cancel").check().stdout


def test_a_job_outlives_its_kernel_and_is_attached_by_another(kernel, other):
    request = other.start(
        "%%picloud\nimport time\nprint('begun', flush=True)\ntime.sleep(4)\nprint('ended')\nleft = 5\nleft"
    )
    other.listen(request, lambda ran: "begun" in ran.stdout)
    jid = session().client.get("/v1/jobs", {"limit": 1})["jobs"][0]["jid"]
    other.manager.signal_kernel(9)  # in the middle of the cell
    assert cloud.status(jid) == "processing"
    for _ in range(2):
        ran = kernel.run(f"%picloud attach {jid}").check()
        assert ran.stdout == "begun\nended\n"
        assert ran.value == "5"
    assert kernel.value("left") == 5


def test_two_kernels_at_once(kernel, other):
    code = "%%picloud\nimport time\nfor i in range(5):\n    print(who, flush=True)\n    time.sleep(0.1)\nme = who"
    for k, name in ((kernel, "first"), (other, "other")):
        k.run(f"who = {name!r}")
    requests = [(k, k.start(code)) for k in (kernel, other)]
    for (k, request), name in zip(requests, ("first", "other"), strict=True):
        assert k.finish(request).check().stdout == f"{name}\n" * 5
        assert k.value("me") == name


# -------------------------------------------------------------------------------------- commands
def test_commands(kernel):
    kernel.run("%%picloud --label looked\n1").check()
    jid = last_jid(kernel)
    assert f"job {jid}: done" in kernel.run("%picloud status").check().stdout
    assert "looked" in kernel.run(f"%picloud status {jid}").check().stdout
    assert "status [JIDS]" in kernel.run("%picloud").check().stdout
    assert "did you mean cancel" in kernel.run("%picloud cancl").stderr
    assert "one job id" in kernel.run("%picloud attach 1-4").stderr
    ran = kernel.run("%picloud attach 2000000000")
    assert ran.reply["ename"] == "NotFound"
    assert "picloud_jupyter/" not in ran.traceback


def test_result_of_a_call_is_its_value(kernel):
    jid = int(cloud.call(lambda: 11))
    assert kernel.run(f"%picloud result {jid}").check().value == "11"


def test_config_holds_for_the_cells_of_this_notebook(kernel):
    try:
        ran = kernel.run("%picloud config --type s1 --label all")
        assert "--type s1 --label all" in ran.check().stdout
        kernel.run("%%picloud\n1").check()
        assert last_info(kernel, "core_type", "label") == ["s1", "all"]
        kernel.run("%%picloud --type c1\n1").check()
        assert last_info(kernel, "core_type", "label") == ["c1", "all"]
        assert "belongs to one cell" in kernel.run("%picloud config --input a").stderr
        assert "--type must be" in kernel.run("%picloud config --type x").stderr
        assert "--type s1" in kernel.run("%picloud config").check().stdout
    finally:
        assert kernel.run("%picloud config --reset").check().stdout == "%%picloud\n"


# --------------------------------------------------------------------------- other ways to run it
def notebook(*cells):
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return made


def execute(made, folder):
    client = NotebookClient(
        made, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return made


def test_a_notebook_of_nbclient(service, folder):
    made = execute(
        notebook(
            "%load_ext picloud_jupyter\nscale = 3",
            "%%picloud\nimport matplotlib.pyplot as plt\nprint('drawing')\nplt.plot([scale, 1])\nplt.show()\ntotal = scale * 2\ntotal",
            "print(total)",
        ),
        folder,
    )
    outputs = [
        o for o in made.cells[1].outputs if o.get("name") != "stderr"
    ]  # it may have waited
    kinds = [output.output_type for output in outputs]
    assert kinds == ["stream", "display_data", "execute_result"]
    assert "image/png" in outputs[1].data
    assert made.cells[2].outputs[0].text == "6\n"


def test_nbclient_stops_at_a_cell_that_fails(service, folder):
    made = notebook("%load_ext picloud_jupyter", "%%picloud\n{}['absent']", "print('never')")
    with pytest.raises(CellExecutionError) as caught:
        execute(made, folder)
    assert caught.value.ename == "KeyError"
    assert caught.value.evalue == "'absent'"
    assert made.cells[2].outputs == []


def test_nbclient_shows_a_background_job_in_its_own_cell(service, folder):
    made = execute(
        notebook(
            "%load_ext picloud_jupyter",
            SLOW,
            "job = _\nimport time\njob.result()\ntime.sleep(1.5)\nprint(slow)",
        ),
        folder,
    )
    (shown,) = [
        output for output in made.cells[1].outputs if output.output_type == "display_data"
    ]
    assert "line 2" in shown.data["text/html"]
    assert "is done" in shown.data["text/plain"]
    assert made.cells[2].outputs[0].text == "came back\n"


def test_plain_ipython(service, tmp_path):
    lines = tmp_path / "typed.ipy"
    lines.write_text(
        "%load_ext picloud_jupyter\nn = 20\nget_ipython().run_cell('%%picloud\\nm = n + 1\\nprint(m)\\nm * 2')\n"
        "get_ipython().run_cell('%%picloud --nowait\\n5')\nget_ipython().run_cell('%picloud result')\n"
        "get_ipython().run_cell('%%picloud\\n1/0')\nprint('m is', m)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(lines)],
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "21\n" in done.stdout
    assert "42\n" in done.stdout
    assert "raised ZeroDivisionError" in done.stdout
    assert "m is 21" in done.stdout
