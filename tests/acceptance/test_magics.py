"""``%%picloud`` in a real kernel, driven message by message as a notebook front end does."""

import os
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.live_kernel import kernel_with_magics, last_info, last_jid

pytestmark = [pytest.mark.isolation, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def kernel(service, folder):
    with kernel_with_magics(folder) as kernel:
        yield kernel


# ---------------------------------------------------------------------------- names and output
def test_names_are_sent_and_come_back(kernel):
    kernel.run("a, b = 20, [1]")
    ran = kernel.run("%%picloud\nc = a + 1\nb = b + [c]\nc * 2").check()
    assert ran.value == "42"
    assert kernel.value("[a, b, c]") == [20, [1, 21], 21]


def test_the_cell_runs_in_a_job_and_not_here(kernel):
    kernel.run(
        "%%picloud\nimport os\npid, home = os.getpid(), os.environ['PICLOUD_JID']"
    ).check()
    assert kernel.value("int(home)") == last_jid(kernel)
    assert os.getpid() != kernel.value("pid") != kernel.value("os.getpid()")


def test_output_streams_live_and_apart(kernel):
    request = kernel.start(
        "%%picloud\nimport sys, time\nprint('one', flush=True)\nprint('bad', file=sys.stderr, flush=True)\n"
        "time.sleep(3)\nprint('two')"
    )
    ran = kernel.listen(request, lambda ran: "one" in ran.stdout and "bad" in ran.stderr)
    assert "two" not in ran.stdout
    ran = kernel.finish(request).check()
    assert ran.stdout == "one\ntwo\n"
    assert ran.stderr.endswith("bad\n")
    assert "one" not in ran.stderr


def test_displays_come_in_their_order(kernel):
    ran = kernel.run(
        "%%picloud\nfrom IPython.display import HTML, display\nprint('before')\ndisplay(HTML('<b>x</b>'))\n"
        "print('after')\n'last'"
    ).check()
    assert ran.kinds == ["stdout", "display_data", "stdout", "execute_result"]
    assert ran.bundles("display_data")[0]["text/html"] == "<b>x</b>"
    assert ran.value == "'last'"
    assert kernel.run("_").value == "'last'"


def test_output_can_be_captured(kernel):
    kernel.run(
        "%%capture held\nget_ipython().run_cell_magic('picloud', '', 'print(1)\\n2')"
    ).check()
    assert kernel.value("[held.stdout, len(held.outputs)]") == ["1\n", 1]


def test_a_display_is_updated_and_cleared(kernel):
    ran = kernel.run(
        "%%picloud\nfrom IPython.display import clear_output, display\nh = display('a', display_id='mine')\n"
        "h.update('b')\nclear_output(wait=True)\ndel h"
    ).check()
    assert ran.kinds == ["display_data", "update_display_data", "clear_output"]


def test_a_figure_and_a_table_appear(kernel):
    ran = kernel.run(
        "%%picloud\nimport matplotlib.pyplot as plt, pandas as pd\n"
        "plt.plot([1, 2, 4])\nplt.show()\npd.DataFrame({'x': [1, 2]})"
    ).check()
    assert "image/png" in ran.bundles("display_data")[0]
    assert "<table" in ran.bundles("execute_result")[0]["text/html"]
    assert kernel.value("plt.__name__") == "matplotlib.pyplot"


def test_functions_and_classes_work_in_both_directions(kernel):
    kernel.run(
        "rate = 2\ndef double(x):\n    return x * rate\nclass P:\n    def up(self):\n        return rate + 1"
    )
    ran = kernel.run(
        "%%picloud\ndef f(x):\n    return double(x) + later()\ndef later():\n    return 100\n"
        "class Q(P):\n    def two(self):\n        return self.up() * 2\np = P()\nf(1), Q().two()"
    ).check()
    assert ran.value == "(102, 6)"
    kernel.run("rate = 5\ndef later():\n    return 1000")
    # as if they had been defined here: they see what the notebook has now
    assert kernel.value("[f(1), Q().two(), p.up(), isinstance(p, P), f.__module__]") == [
        *(1005, 12, 6, True),
        "__main__",
    ]


def test_a_function_of_the_notebook_sees_what_the_cell_assigns(kernel):
    kernel.run("level = 1\ndef show():\n    return level")
    assert kernel.run("%%picloud\nlevel = 2\nshow()").check().value == "2"


def test_names_that_shadow_builtins(kernel):
    kernel.run("list = (7, 8)")
    assert kernel.run("%%picloud\nsum(list)").check().value == "15"
    kernel.run("del list")
    assert kernel.run("%%picloud\nlist('ab')").check().value == "['a', 'b']"


def test_magics_commands_and_await(kernel):
    kernel.run("word = 'hello'")
    ran = kernel.run(
        "%%picloud\nimport asyncio\nawait asyncio.sleep(0)\n!echo $word there\nout = !echo {word}\n%time n = 5"
    ).check()
    assert "hello there" in ran.stdout
    assert "Wall time" in ran.stdout
    assert kernel.value("[list(out), n]") == [["hello"], 5]


def test_a_cell_magic_inside(kernel):
    kernel.run("m = 3")
    assert "Wall time" in kernel.run("%%picloud\n%%time\nk = m * 2").check().stdout
    assert kernel.value("k") == 6


def test_star_import_and_deletion(kernel):
    kernel.run("gone = 1")
    ran = kernel.run("%%picloud\nfrom math import *\ndel gone\nfloor(2.5)").check()
    assert ran.value == "2"
    assert kernel.value("'gone' in globals()") is False


def test_the_notebooks_folder_and_modules_are_there(kernel, folder):
    (folder / "data.csv").write_text("x\n5\n")
    (folder / "beside.py").write_text("def tell():\n    return 'first'\n")
    code = (
        "%%picloud\nimport pandas, beside\nint(pandas.read_csv('data.csv').x[0]), beside.tell()"
    )
    assert kernel.run(code).check().value == "(5, 'first')"
    (folder / "beside.py").write_text("def tell():\n    return 'edited'\n")
    assert kernel.run(code).check().value == "(5, 'edited')"


# -------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        ("x1 = nobody + other\nprint(x1)", "NameError", ["nobody, other", "Nothing was subm"]),
        ("if True:\nprint(1)", "IndentationError", ["In["]),
        ("x = (1", "SyntaxError", ["never closed", "x = (1"]),
        ("list(gen)", "PicklingError", ["gen: generator", "send list"]),
        ("written.write('x')", "PicklingError", ["written"]),
        ("Out[1]", "NameError", ["history", "_3"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_submitted(kernel, folder, code, name, words):
    path = folder / "w.txt"
    kernel.run(f"gen = (i for i in range(3)); written = open({str(path)!r}, 'w')").check()
    kernel.run("%%picloud\n0").check()
    before = last_jid(kernel)
    ran = kernel.run(f"%%picloud\n{code}")
    assert ran.reply["status"] == "error"
    assert ran.reply["ename"] == name
    for word in words:
        assert word in ran.traceback
    assert "picloud_jupyter/" not in ran.traceback  # none of our frames
    assert last_jid(kernel) == before
    kernel.run("written.close()")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--bogus", "--bogus"),
        ("--type c9", "--type must be one of c1"),
        ("--type c2 --cores 3", "--cores 3"),
        ("--cores two", "invalid int"),
        ("--max-runtime 0", "--max-runtime must be more than 0"),
        ("--file nowhere.csv", "does not exist"),
        ("--input 3a", "not a name"),
        ("--output zz", "neither assigns nor reads zz"),
        ("--label 'unclosed", "No closing quotation"),
    ],
)
def test_a_wrong_line_is_refused(kernel, line, words):
    ran = kernel.run(f"%%picloud {line}\ny = 1")
    assert ran.reply["status"] == "error"
    assert ran.reply["ename"] == "UsageError"
    assert words in ran.stderr


def test_environments_and_named_volumes_are_refused_in_words(kernel):
    for line, words in (("--env science", "environment 'science'"), ("--vol data", "data")):
        ran = kernel.run(f"%%picloud {line}\n1")
        assert ran.reply["status"] == "error"
        assert words in ran.traceback
        assert " _env" not in ran.traceback  # the words of the line
        assert "picloud_jupyter/" not in ran.traceback


def test_an_empty_cell_is_refused(kernel):
    assert "empty" in kernel.run("%%picloud\n   \n").stderr


def test_a_huge_variable_is_refused_with_sizes(kernel):
    kernel.run("cloud.config.max_transmit_data = 1_000_000\nhuge, small = b'x' * 2_000_000, 1")
    ran = kernel.run("%%picloud\nlen(huge) + small")
    assert "huge (2,000,0" in ran.traceback
    assert "max_transmit_data" in ran.traceback
    ran = kernel.run("%%picloud\nback = bytes(3_000_000)\nn = 1").check()
    assert "back was not brought back" in ran.stderr
    assert kernel.value("n") == 1
    kernel.run("cloud.config.max_transmit_data = 256 * 1024 ** 2")
    assert kernel.run("%%picloud\nlen(huge) + small").check().value == "2000001"


def test_what_cannot_come_back_is_named(kernel):
    ran = kernel.run("%%picloud\nnumbers = (i for i in range(3))\nfine = 1").check()
    assert "numbers was not brought back" in ran.stderr
    assert "generator" in ran.stderr
    assert kernel.value("fine") == 1
    ran = kernel.run("%%picloud --output numbers2\nnumbers2 = (i for i in range(3))")
    assert ran.reply["status"] == "error"
    assert "numbers2" in ran.traceback


def test_a_name_that_may_be_missing_is_left_out_and_named(kernel):
    kernel.run("held = (i for i in range(3))")
    ran = kernel.run(
        "%%picloud\ntry:\n    held\nexcept NameError:\n    held = 'own'\nheld"
    ).check()
    assert ran.value == "'own'"
    assert "held is not sent" in ran.stderr


# ---------------------------------------------------------------------------------------- errors
def test_an_error_keeps_its_name_and_shows_the_remote_frames(kernel):
    kernel.run("def divide(x):\n    return 1 / x")
    ran = kernel.run("%%picloud\nprint('so far')\nzero = 0\ndivide(zero)")
    assert ran.stdout == "so far\n"
    assert ran.reply["ename"] == "ZeroDivisionError"
    assert ran.reply["evalue"] == "division by zero"
    assert f"Job {last_jid(kernel)} raised" in ran.traceback
    assert "line 4" in ran.traceback
    assert "divide(zero)" in ran.traceback
    assert "return 1 / x" in ran.traceback
    assert "%debug cannot go" in ran.traceback
    assert f'File "In[{ran.reply["execution_count"]}]", line 4' in ran.traceback
    for ours in ("picloud_jupyter/", "picloud_kernels/", "interactiveshell"):
        assert ours not in ran.traceback


def test_an_error_of_a_class_of_the_cell(kernel):
    ran = kernel.run("%%picloud\nclass Mine(Exception):\n    pass\nraise Mine('oh')")
    assert (ran.reply["ename"], ran.reply["evalue"]) == ("Mine", "oh")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import sys\nsys.exit(3)", "SystemExit"),
        ("eval('1+')", "SyntaxError"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup"),
    ],
)
def test_errors_that_ipython_shows_by_other_ways(kernel, code, name):
    ran = kernel.run(f"%%picloud\n{code}")
    assert ran.reply["ename"] == name
    assert "raised" in ran.traceback
    assert "picloud_jupyter/" not in ran.traceback


def test_a_killed_job_says_so(kernel):
    ran = kernel.run("%%picloud --max-runtime 0.01\nimport time\ntime.sleep(30)")
    assert ran.reply["ename"] == "JobKilled"
    assert "--max-runtime" in ran.traceback
    assert "timeout" in ran.traceback


# --------------------------------------------------------------------------------------- options
def test_resources_and_label(kernel):
    kernel.run(
        "%%picloud --type c2 --cores 2 --label fit\nimport os\nthreads = os.environ['OMP_NUM_THREADS']"
    ).check()
    assert last_info(kernel, "core_type", "cores", "label") == ["c2", 2, "fit"]
    assert kernel.value("threads") == "2"
    kernel.run("%%picloud -t s1 -c 1\n1").check()
    assert last_info(kernel, "core_type") == ["s1"]


def test_the_job_is_listed_by_its_cell(kernel):
    kernel.run("%%picloud\n# fit the model\n1").check()
    assert "# fit the model" in last_info(kernel, "function")[0]


def test_a_volume(kernel, service, tmp_path):
    (tmp_path / "in.txt").write_text("from the host")
    ran = kernel.run(f"%%picloud -v {tmp_path}:/data\nopen('/data/in.txt').read()")
    if service.kind == "plain":
        assert "(--vol) needs a container" in ran.traceback
    else:
        assert ran.check().value == "'from the host'"


def test_input_and_output_name_what_travels(kernel):
    kernel.run("p, q = 1, 2\nr = s = 0")
    ran = kernel.run("%%picloud --input p\np + q")
    assert ran.reply["ename"] == "NameError"
    assert "not in --input: q" in ran.traceback
    kernel.run("%%picloud --input p,q --output r\nr = eval('p + q')\ns = 99").check()
    assert kernel.value("[r, s]") == [3, 0]
    kernel.run("%%picloud --output ''\nr = 50").check()
    assert kernel.value("r") == 3
    kernel.run("grown = []")
    kernel.run("%%picloud --output grown\ngrown.append(1)").check()
    assert kernel.value("grown") == [1]


def test_a_local_file_is_sent(kernel, tmp_path, folder):
    (tmp_path / "far.txt").write_text("from afar")
    ran = kernel.run(
        f"%%picloud --file {tmp_path}/far.txt -f {tmp_path}/far.txt:near.txt\n"
        "open('far.txt').read(), open('near.txt').read()"
    ).check()
    assert ran.value == "('from afar', 'from afar')"
    assert not (folder / "far.txt").exists()
    (folder / "here.txt").write_text("beside")
    assert (
        kernel.run("%%picloud -f here.txt\nopen('here.txt').read()").check().value == "'beside'"
    )
    (tmp_path / "here.txt").write_text("other")
    ran = kernel.run(f"%%picloud -f {tmp_path}/here.txt\n1")
    assert "another here.txt lies beside" in ran.stderr


def test_written_files_are_fetched(kernel, service, folder):
    ran = kernel.run(
        "%%picloud --fetch out\nimport os\nos.makedirs('deep', exist_ok=True)\n"
        "with open('deep/made.txt', 'w') as f:\n    f.write('text')\ndel f"
    ).check()
    if service.kind == "plain":  # it wrote beside the notebook
        assert (folder / "deep" / "made.txt").read_text() == "text"
        assert "picloud: " in ran.stderr
        return
    assert (folder / "out" / "deep" / "made.txt").read_text() == "text"
    assert "fetched 1 file into out" in ran.stderr
    assert not (folder / "deep").exists()


def test_a_cached_cell_is_not_run_again(kernel):
    code = "%%picloud --cache\nimport random\nprint('ran')\nluck = random.random()\nluck > 2"
    assert kernel.run(code).check().stdout == "ran\n"
    first, job = kernel.value("luck"), last_jid(kernel)
    kernel.run("luck = 0")
    again = kernel.run(code).check()
    assert kernel.value("luck") == first
    assert last_info(kernel, "cached_from") == [job]
    assert (again.stdout, again.value) == ("ran\n", "False")


def test_a_dry_run_submits_nothing(kernel):
    kernel.run("%%picloud\n0").check()
    before = last_jid(kernel)
    kernel.run("given = 'x' * 1000")
    ran = kernel.run("%%picloud --type c2 --cores 2 --dry-run\ntaken = len(given)").check()
    assert "--type c2 --cores 2" in ran.stdout
    assert "given (1,0" in ran.stdout
    assert "brings back: taken" in ran.stdout
    assert last_jid(kernel) == before


def test_local_runs_here_with_a_traceback_to_debug(kernel):
    ran = kernel.run(
        "%%picloud --local\nimport os\nlocal_pid = os.getpid()\nlocal_pid * 0"
    ).check()
    assert ran.value == "0"
    assert kernel.value("local_pid == os.getpid()") is True
    ran = kernel.run(
        "%%picloud --local\ndef broken():\n    here = 5\n    raise ValueError(here)\nbroken()"
    )
    assert ran.reply["ename"] == "ValueError"
    innermost = (
        "[f for f, _ in __import__('traceback').walk_tb(__import__('sys').last_traceback)][-1]"
    )
    assert kernel.value(f"{innermost}.f_locals['here']") == 5
    code = "%%picloud --local\nimport asyncio\nawait asyncio.sleep(0)"
    assert "cannot await" in kernel.run(code).stderr


# ------------------------------------------------------------------------------- amounts and waits
def test_much_output_is_cut_here_and_whole_in_the_log(kernel, service):
    code = "%%picloud\nfor i in range(200_000):\n    print('line', i, '.' * 20)"
    ran = kernel.run(code).check()
    jid = last_jid(kernel)
    assert len(ran.stdout) < 700_000
    assert ran.stdout.startswith("line 0 ")
    assert ran.stdout.endswith("line 199999 ....................\n")
    assert f"`picloud logs {jid}` prints all" in ran.stdout
    log = service.cli("logs", str(jid)).stdout.splitlines()
    assert [line.split()[1] for line in log] == [str(i) for i in range(200_000)]


def test_a_long_wait_is_explained(kernel):
    blockers = cloud.map(time.sleep, [4] * 8, _priority=1)
    try:
        ran = kernel.run("%%picloud\n1").check()
        assert "is queued" in ran.stderr
    finally:
        cloud.kill(blockers)


def test_completion(kernel, folder):
    kernel.run("%%picloud --label looked-for\n1").check()
    (folder / "table.csv").write_text("")
    assert "%%picloud" in kernel.complete("%%pic")
    assert "--max-runtime" in kernel.complete("%%picloud --max")
    assert set(kernel.complete("%%picloud --type ")) >= {"c1", "c2", "f2", "m1", "s1"}
    assert kernel.complete("%%picloud -t f") == ["f2"]
    assert set(kernel.complete("%%picloud -t c2 -c ")) >= {"1", "2", "4", "8"}
    assert "table.csv" in kernel.complete("%%picloud --file ta")
    assert "looked-for" in kernel.complete("%%picloud --label lo")
    assert "attach" in kernel.complete("%picloud at")
    assert str(last_jid(kernel)) in kernel.complete("%picloud attach ")


def test_loading_twice_and_unloading(kernel):
    kernel.run("%load_ext picloud_jupyter\n%reload_ext picloud_jupyter").check()
    assert kernel.run("%%picloud\n3").check().value == "3"
    assert kernel.value("cloud.__name__") == "picloud_jupyter.cloud"
    kernel.run("%unload_ext picloud_jupyter").check()
    assert "not found" in kernel.run("%%picloud\n3").stderr
    ran = kernel.run("cloud = 'mine'\n%load_ext picloud_jupyter").check()
    assert "the name cloud is yours" in ran.stderr
    assert kernel.value("cloud") == "mine"
    kernel.run("del cloud\n%reload_ext picloud_jupyter").check()
