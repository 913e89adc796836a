"""Cells as jobs of the real service, sent as the doors send them."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud.calls import submit_call
from picloud_jupyter.cloud.keywords import take_options
from picloud_jupyter.protocol.cells import Cell
from picloud_jupyter.protocol.displays import Display, Splitter
from picloud_jupyter.protocol.jobs import Kind
from picloud_jupyter.serialize.payload import load
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation


def submit(cell, inputs=None, **keywords):
    options = take_options(keywords, func=None, environ={})
    return submit_call(cell, (inputs or {},), {}, replace(options, kind=Kind.CELL))


def values_of(jid):
    return {name: load(data) for name, data in cloud.result(jid, timeout=60).values.items()}


def shown_by(service, jid):
    done = subprocess.run(
        [sys.executable, "-m", "picloud_jupyter.cli", "logs", "--raw", "-f", str(int(jid))],
        env={**os.environ, **service.environment},
        capture_output=True,
        check=True,
        timeout=60,
    )
    splitter = Splitter()
    return [*splitter.feed(done.stdout), *splitter.finish()]


def test_a_cell_takes_names_and_brings_names(service):
    jid = submit(
        Cell("import numpy as np\ny = x * 2\ntotal = y.sum()"), {"x": np.arange(200_000)}
    )
    values = values_of(jid)
    assert (values["y"] == np.arange(200_000) * 2).all()
    assert values["total"] == 199_999 * 200_000
    assert cloud.result(jid).modules == {"np": "numpy"}
    assert cloud.info(jid, "reason")[jid]["reason"] == "done"


def test_displays_are_in_the_log_and_words_for_people(service):
    jid = submit(
        Cell(
            "import matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 2]);plt.show()\n"
            "print('after')\n{'a': 1}"
        )
    )
    cloud.join(jid, timeout=60)
    before, figure, after, last = shown_by(service, jid)
    assert (before, after) == (b"before\n", b"after\n")
    assert figure.data["image/png"].startswith("iVBORw0KGgo")
    assert isinstance(last, Display)
    lines = service.cli("logs", str(int(jid))).stdout.splitlines()
    assert lines[0] == "before"
    assert lines[1].startswith("[figure image/png ")
    assert lines[2:] == ["after", "{'a': 1}"]
    printed = cloud.info(jid, "stdout")[jid]["stdout"]
    assert printed.splitlines() == lines
    assert "[figure image/png" in service.cli("info", str(int(jid))).stdout
    tail = service.cli("logs", "--tail", "60", str(int(jid))).stdout
    assert "QUJD" not in tail
    assert tail.startswith("[picloud: a display of ")


def test_output_is_there_while_the_cell_runs(service):
    jid = submit(Cell("import time\nprint('first')\ndisplay('second')\ntime.sleep(60)"))
    eventually(lambda: "second" in service.cli("logs", str(int(jid))).stdout)
    assert cloud.status(jid) == "processing"
    cloud.kill(jid)
    eventually(lambda: cloud.status(jid) == "killed")
    assert service.cli("logs", str(int(jid))).stdout == "first\n'second'\n"


def test_an_error_of_a_cell_ends_the_job_with_its_own_lines(service):
    jid = submit(Cell("def f():\n    1/0\nprint('seen')\nf()", first_line=2))
    with pytest.raises(cloud.CloudException) as caught:
        cloud.result(jid, timeout=60)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    told = cloud.info(jid, ["exception", "stdout", "status"])[jid]
    assert told["status"] == "error"
    assert told["stdout"] == "seen\n"
    assert f'File "<picloud J{int(jid)}>", line 5, in <module>\n    f()\n' in told["exception"]
    assert told["exception"].count('File "') == 2


def test_a_name_that_must_come_back_and_cannot(service):
    jid = submit(Cell("x = (i for i in [])", outputs=("x",)))
    cloud.join(jid, timeout=60, ignore_errors=True)
    assert cloud.info(jid, "reason")[jid]["reason"] == "result_unserializable"
    assert "x cannot be sent back" in cloud.info(jid, "exception")[jid]["exception"]


def test_magics_and_commands_run_where_the_job_runs(service):
    jid = submit(
        Cell(
            "where = !pwd\nhome = %env HOME\nimport os\nok = os.environ['PICLOUD_JID']\n!echo out"
        )
    )
    values = values_of(jid)
    assert values["ok"] == str(int(jid))
    assert len(values["where"]) == 1
    assert cloud.info(jid, "stdout")[jid]["stdout"] == "out\n"


def test_cells_share_a_warm_runner_and_nothing_else(service):
    first = submit(Cell("import os\nleak = 1\npid = os.getpid()"))
    pid = values_of(first)["pid"]
    second = submit(Cell("import os\npid = os.getpid()\nseen = 'leak' in globals()"))
    assert values_of(second) == {"pid": pid, "seen": False}


def test_a_cell_may_submit_jobs(service):
    jid = submit(
        Cell(
            "from picloud_jupyter import cloud\ndef double(x): return x * n\n"
            "found = list(cloud.result(cloud.map(double, [1, 2, 3])))"
        ),
        {"n": 2},
        _cores=1,
    )
    assert values_of(jid)["found"] == [2, 4, 6]


def test_the_kept_result_of_a_cell(service):
    cell = Cell("x = 40 + y")
    first = submit(cell, {"y": 2}, _cache=True)
    cloud.join(first, timeout=60)
    second = submit(cell, {"y": 2}, _cache=True)
    assert values_of(second) == {"x": 42}
    assert cloud.info(second, "cached_from")[second]["cached_from"] == first
