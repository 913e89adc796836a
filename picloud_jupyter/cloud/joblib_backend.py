"""joblib's backend "picloud": batches of tasks as jobs. Loaded when it is first used.

Large arrays that come again and again travel once per call of `joblib.Parallel`: see `ArrayTable`.
"""

import time
from collections.abc import Callable
from typing import Any

from joblib._parallel_backends import SequentialBackend, ThreadingBackend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from picloud_jupyter.cloud.array_table import ArrayTable
from picloud_jupyter.cloud.executor import Executor, JobFuture
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import PlatformError
from picloud_jupyter.protocol.jobs import CORE_TYPES

NODES_SECONDS = 10.0  # how long a service that has just started may take to know its machine
_LOOK_SECONDS = 0.05


class PiCloudBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib ships no types
    """Runs the tasks of `joblib.Parallel` as jobs; batches of them are as long as loky's.

    Reserved keywords of `cloud.call` say how the jobs run:
    ``parallel_config(backend="picloud", _type="c2", _cores=2)``. ``n_jobs=-1`` is as many as fit on the
    cores of the service. Within a task threads run what it makes parallel itself, as many as it has cores.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **reserved: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads
        )
        self._reserved = reserved
        self._core_type = str(reserved.get("_type", "c1"))
        self._cores = int(reserved.get("_cores", 1))
        self._executor = Executor(**reserved)  # refuses wrong keywords now
        self._arrays = ArrayTable()

    # ------------------------------------------------------------------ what joblib calls
    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at once: ``n_jobs``, below 0 counted from the service's cores."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, self._room() + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,  # noqa: ANN401
        max_nbytes: int | None = None,
        mmap_mode: str | None = "r",
        **_others: Any,  # noqa: ANN401  # of joblib's own backends
    ) -> int:
        """Make ready for one `Parallel`; return how many tasks run at once."""
        self.parallel = parallel
        count = self.effective_n_jobs(n_jobs)
        self._executor = Executor(None if n_jobs < 0 else count, **self._reserved)
        read_only_bytes = max_nbytes if mmap_mode == "r" else None
        self._arrays = ArrayTable(read_only_bytes)
        return count

    def start_call(self) -> None:
        """Begin one call of the `Parallel`: what is shared is shared within it."""
        self._arrays.clear()

    def stop_call(self) -> None:
        """End it."""
        self._arrays.clear()

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> JobFuture:  # noqa: ANN401
        """Return the future of a batch. It never raises: joblib calls it from its callbacks, too."""
        try:
            future = self._executor.start(
                lambda: self._arrays.submit(func, self._executor.options)
            )
        except Exception as exc:  # noqa: BLE001  # the future carries it to who waits
            future = self._executor.failed(exc)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: JobFuture) -> Any:  # noqa: ANN401
        """Return the results of a batch, or raise what a task raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002
        """End all jobs that are queued or run: nobody will ask for them."""
        self._executor.kill()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return what runs a `Parallel` within a task: threads, where it has several cores."""
        level = (self.nesting_level or 0) + 1
        if self._cores == 1:
            return SequentialBackend(nesting_level=level), None
        return ThreadingBackend(nesting_level=level), self._cores

    # ------------------------------------------------------------------ the service
    def _room(self) -> int:
        """How many jobs of this kind run at once."""
        share = CORE_TYPES[self._core_type].share * self._cores
        return max(1, int(sum(node["capacity"]["cores"] for node in _nodes()) / share))


def _nodes() -> list[dict[str, Any]]:
    end_at = time.monotonic() + NODES_SECONDS
    while True:
        nodes: list[dict[str, Any]] = session().client.get(routes.NODES)["nodes"]
        if nodes:
            return nodes
        if time.monotonic() > end_at:
            raise PlatformError(
                f"the service has had no machine for {NODES_SECONDS:.0f} seconds, so n_jobs=-1 has no meaning",
                hint="run `picloud doctor`, or say how many: n_jobs=4",
            )
        time.sleep(_LOOK_SECONDS)  # its agent starts beside it and connects within a second
