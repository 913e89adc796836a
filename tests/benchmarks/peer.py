"""Measures one peer (ray or dask) in a process of its own; prints one JSON object.

Run with the Python of the peers' environment: ``python peer.py ray|dask``.
"""

import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import work

REPEATS = 3


class Ray:
    def start(self):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self.ray = ray
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=10**9,
            _node_ip_address="127.0.0.1",
            runtime_env={
                "env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
            },
        )
        self.remote = {}

    def function(self, f):
        if f not in self.remote:
            self.remote[f] = self.ray.remote(f)
        return self.remote[f]

    def call(self, f, *args):
        return self.ray.get(self.function(f).remote(*args))

    def map(self, f, n):
        remote = self.function(f)
        return self.ray.get([remote.remote(i) for i in range(n)])

    def stop(self):
        self.ray.shutdown()


class Dask:
    def start(self):
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.admin.low-level-log-length": 100})
        os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
        self.cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
        )
        self.client = Client(self.cluster)

    def call(self, f, *args):
        return self.client.submit(f, *args, pure=False).result()

    def map(self, f, n):
        return self.client.gather(self.client.map(f, range(n), pure=False))

    def stop(self):
        self.client.close()
        self.cluster.close()


def main():
    import numpy

    peer = {"ray": Ray, "dask": Dask}[sys.argv[1]]()
    peer.start()
    for i in range(20):
        peer.call(work.noop, i)
    latencies = []
    for _ in range(300):
        t = time.perf_counter()
        peer.call(work.noop, 1)
        latencies.append(time.perf_counter() - t)
    peer.map(work.noop, 200)
    t = time.perf_counter()
    peer.map(work.noop, 10_000)
    map_seconds = time.perf_counter() - t
    bulk = []
    for k in range(REPEATS):
        array = numpy.random.default_rng(k).random(12_500_000)
        t = time.perf_counter()
        back = peer.call(work.echo, array)
        bulk.append(time.perf_counter() - t)
        assert back.nbytes == array.nbytes
        del back
    print(
        "RESULT "
        + json.dumps(
            {
                "latency_ms": statistics.median(latencies) * 1e3,
                "map_jobs_per_second": 10_000 / map_seconds,
                "bulk_seconds": statistics.median(bulk),
            }
        ),
        flush=True,
    )
    peer.stop()


if __name__ == "__main__":
    main()
