"""GridSearchCV by the joblib backend, beside joblib's own loky in the same run."""

import os
import warnings

import pytest

from tests.benchmarks.measuring import PERF, median
from tests.tools.service_under_test import ServiceUnderTest, kinds_of_this_machine

pytestmark = pytest.mark.benchmark
ROUNDS = int(os.environ.get("BENCH_JOBLIB_ROUNDS", "5"))
GRID = {"C": [0.1, 0.2, 0.5, 1, 2, 5, 10, 20], "gamma": [0.0005, 0.001, 0.002, 0.004]}


@pytest.fixture
def joblib_service(tmp_path_factory):
    """A service of this test alone: loky's workers are there at the same time."""
    started = ServiceUnderTest(tmp_path_factory.mktemp("joblib"), kinds_of_this_machine()[0])
    started.start()
    yield started
    started.end()


@pytest.mark.usefixtures("joblib_service")
def test_grid_search_of_96_fits(table):
    from joblib import parallel_config
    from joblib.externals.loky import get_reusable_executor
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    from picloud_jupyter import cloud

    assert cloud.is_simulated() is False
    x, y = load_digits(return_X_y=True)
    x, y = x[:450], y[:450]

    def seconds(backend):
        search = GridSearchCV(SVC(), GRID, cv=3, n_jobs=2, refit=False)
        with parallel_config(backend=backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loky's, about workers that it stops
            t = PERF()
            search.fit(x, y)
            return PERF() - t

    t = PERF()
    GridSearchCV(SVC(), {"C": [1]}, cv=3, refit=False).fit(x, y)
    fit_ms = (PERF() - t) / 3 * 1e3
    pairs = [(seconds("loky"), seconds("picloud")) for _ in range(ROUNDS + 1)][1:]
    get_reusable_executor().shutdown(wait=True)
    ours, loky = median([b for _, b in pairs]), median([a for a, _ in pairs])
    table.add(
        "GridSearchCV of 96 fits / loky's with 2 workers",
        median([b / a for a, b in pairs]),
        1.15,
        "x loky",
        f"{ours:.2f} s; loky {loky:.2f} s; a fit takes {fit_ms:.0f} ms",
    )
