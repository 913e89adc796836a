"""`make bench`: the whole table, beside the peers, in one run.

Peers live in an environment of their own (`.venv-peers`), made on the first run.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("PICLOUD_BENCH_PEERS", ROOT / ".venv-peers"))


def main() -> int:
    python = PEERS / "bin" / "python"
    if not python.exists():
        print("installing the peers Ray and Dask into .venv-peers (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "-q",
                "ray>=2.40",
                "distributed>=2025.1",
                "numpy",
                "cloudpickle",
            ],
            check=True,
        )
    environment = dict(os.environ, PICLOUD_BENCH_PEERS_PYTHON=str(python))
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "benchmark",
            "--timeout",
            "1200",
            "-q",
            "-s",
            str(ROOT / "tests" / "benchmarks"),
            *sys.argv[1:],
        ],
        cwd=ROOT,
        env=environment,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
