"""The joblib backend: registered without importing joblib, contract of `Parallel`, scikit-learn."""

import multiprocessing
import subprocess
import sys
import time

import joblib
import numpy
import pytest
from joblib import Parallel, delayed, parallel_backend, parallel_config

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


@pytest.fixture
def backend():
    with parallel_config(backend="picloud", n_jobs=2, _label="by-joblib"):
        yield


def newest_jid():
    found = cloud.jobs(1)
    return found[0]["jid"] if found else 0


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_registered_whichever_is_imported_first():
    after = "import sys; from picloud_jupyter import cloud; print('joblib' in sys.modules); import joblib; "
    before = "import joblib; from picloud_jupyter import cloud; print('x'); "
    made = (
        "print('picloud' in joblib.parallel.BACKENDS, joblib.parallel.__spec__.loader.get_source"
        " is not None, sum('picloud' in repr(f) for f in sys.meta_path) if 'sys' in dir() else 0)"
    )
    assert python(after + made) == "False\nTrue True 0\n"
    assert python(before + made) == "x\nTrue True 0\n"


def test_tasks_run_as_jobs_in_order(backend):
    before = newest_jid()
    assert Parallel()(delayed(pow)(k, 2) for k in range(12)) == [k * k for k in range(12)]
    lines = cloud.jobs(50, label="by-joblib")
    assert newest_jid() > before
    assert {line["label"] for line in lines} == {"by-joblib"}
    assert "pow" in lines[0]["function"]


def test_the_older_context_manager():
    with parallel_backend("picloud", n_jobs=2):
        assert Parallel()(delayed(len)("x" * k) for k in range(4)) == [0, 1, 2, 3]
    assert Parallel(n_jobs=2, backend="picloud")(delayed(abs)(-k) for k in range(3)) == [
        0,
        1,
        2,
    ]


def test_all_cores_is_what_the_service_has(service):
    with parallel_config(backend="picloud"):
        capacity = service.status()["capacity"]["cores"]
        assert joblib.effective_n_jobs(-1) == capacity
        assert joblib.effective_n_jobs(3) == 3
    with parallel_config(backend="picloud", _type="s1"):
        assert joblib.effective_n_jobs(-1) == 5 * capacity
    with parallel_config(backend="picloud"), pytest.raises(ValueError, match="no meaning"):
        Parallel(n_jobs=0)(delayed(abs)(k) for k in range(2))


def test_keywords_are_checked_when_the_backend_is_made():
    with pytest.raises(TypeError, match="_label"):
        parallel_config(backend="picloud", _labbel="x")


@pytest.mark.parametrize("how", ["generator", "generator_unordered"])
def test_results_as_generators(backend, how):
    found = Parallel(return_as=how)(delayed(abs)(-k) for k in range(7))
    assert sorted(found) == list(range(7))


def test_exceptions_are_of_their_own_type_and_end_what_is_queued(backend):
    def fails_at(k):
        if k == 1:
            raise LookupError(k)
        time.sleep(30)

    before = newest_jid()
    with pytest.raises(LookupError, match="1"):
        Parallel(pre_dispatch="all", batch_size=1)(
            delayed(fails_at)(k) for k in [1, *range(2, 9)]
        )
    jids = range(before + 1, newest_jid() + 1)
    eventually(
        lambda: not {"queued", "waiting", "processing"} & set(cloud.status(jids)),
        what="all jobs of the failed call have ended",
    )
    assert Parallel()(delayed(abs)(k) for k in range(3)) == [0, 1, 2]


def test_what_cannot_be_sent_raises_and_does_not_hang(backend):
    def tasks():
        for k in range(30):
            yield delayed(len)([k] if k < 20 else (x for x in "ab"))

    with pytest.raises(Exception, match="generator"):
        Parallel()(tasks())


def test_timeout(backend):
    with pytest.raises(multiprocessing.TimeoutError):  # joblib's
        Parallel(timeout=0.5)(delayed(time.sleep)(30) for _ in range(2))


def test_progress_is_printed(backend, capfd):
    Parallel(verbose=10)(delayed(abs)(k) for k in range(4))
    text = "".join(capfd.readouterr())
    assert "PiCloudBackend with 2 concurrent workers" in text
    assert "4 out of   4" in text


def test_n_jobs_limits_how_many_run():
    with parallel_config(backend="picloud", n_jobs=2, _type="s1"):
        spans = Parallel(batch_size=1, pre_dispatch="all")(
            delayed(lambda: (time.time(), time.sleep(0.15), time.time()))() for _ in range(6)
        )
    for begin, _, _ in spans:
        assert sum(a <= begin < b for a, _, b in spans) <= 2


def test_nested_parallel_runs_within_the_task(backend):
    def outer(k):
        return sum(Parallel(n_jobs=2)(delayed(abs)(-j) for j in range(k)))

    before = newest_jid()
    assert Parallel(batch_size=1)(delayed(outer)(k) for k in range(4)) == [0, 0, 1, 3]
    assert newest_jid() - before == 4


# ----------------------------------------------------------------------------------- arrays
def test_a_large_array_travels_once(backend, service):
    array = numpy.arange(400_000, dtype=float)

    def probe(data, k):
        return float(data[k]), data.flags.writeable, data.flags.aligned

    def stored_bytes():
        return sum(p.stat().st_size for p in (service.home / "blobs").rglob("*") if p.is_file())

    before = stored_bytes()
    found = Parallel(batch_size=1)(delayed(probe)(array, k) for k in range(10))
    assert [value for value, _, _ in found] == list(range(10))
    assert {writeable for _, writeable, _ in found[2:]} == {False}
    assert all(aligned for _, _, aligned in found)
    # once with the first task, once for all others
    assert stored_bytes() - before < 2.5 * array.nbytes


def test_a_middling_array_is_a_copy_of_each_task(backend):
    def change(data):
        data += 1
        return float(data[0])

    array = numpy.zeros(20_000)  # below joblib's max_nbytes
    assert Parallel(batch_size=1)(delayed(change)(array) for _ in range(6)) == [1.0] * 6
    with parallel_config(backend="picloud", n_jobs=2, max_nbytes=None):
        large = numpy.zeros(300_000)
        assert Parallel(batch_size=1)(delayed(change)(large) for _ in range(4)) == [1.0] * 4


def test_views_of_one_array_and_frames_keep_their_content(backend):
    base = numpy.arange(60_000, dtype=float).reshape(300, 200)
    views = [base[:150], base[150:], base.T, base[:150]]
    found = Parallel(batch_size=1)(delayed(numpy.sum)(view) for view in views * 2)
    assert found == [float(view.sum()) for view in views * 2]


def test_grid_search_of_scikit_learn_runs_unchanged():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    x, y = load_digits(return_X_y=True)
    x, y = x[:400], y[:400]
    grid = {"C": [0.5, 2], "gamma": [0.0005, 0.002]}
    here = GridSearchCV(SVC(), grid, cv=3).fit(x, y)
    before = newest_jid()
    with parallel_config(backend="picloud", n_jobs=2):
        there = GridSearchCV(SVC(), grid, cv=3).fit(x, y)
    assert newest_jid() > before
    assert there.best_params_ == here.best_params_
    numpy.testing.assert_allclose(
        there.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"]
    )


def test_parallel_within_a_job():
    def job():
        from joblib import Parallel, delayed, parallel_config

        from picloud_jupyter import cloud  # noqa: F401  # registers the backend

        with parallel_config(backend="picloud", n_jobs=2):
            return Parallel()(delayed(abs)(-k) for k in range(4))

    assert cloud.result(cloud.call(job), timeout=50) == [0, 1, 2, 3]
