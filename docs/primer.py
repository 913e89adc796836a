"""The primer: three small programs that show what a job is. Run it with ``python3 run.py primer``.

Everything runs in containers on this machine, through the service that the first call starts.
"""

import math
import random
import time
from collections.abc import Callable

from picloud_jupyter import cloud

POINTS_PER_JOB = 400_000
PI_JOBS = 16
GAMMAS = (0.0001, 0.0003, 0.001, 0.003, 0.01)
PENALTIES = (0.3, 1.0, 3.0, 10.0)


def main() -> None:
    """Run the three programs and print what they did and used."""
    title("1. Pi, by throwing darts on all cores")
    pi_by_monte_carlo()
    title("2. The best settings for reading handwritten digits")
    search_settings()
    title("3. A job that fails says why")
    failing_job()
    title("Done")
    print("Every job above is kept: try `picloud top`, or in Python cloud.info(jid).")


def throw_darts(seed: int) -> tuple[int, float]:
    """Return how many of POINTS_PER_JOB random points lie in the quarter circle, and the first draw.

    Each job seeds a generator of its own, so that no two jobs throw the same darts.
    """
    generator = random.Random(seed)  # noqa: S311  # darts, not secrets
    first = generator.random()
    hits = sum(
        generator.random() ** 2 + generator.random() ** 2 <= 1.0 for _ in range(POINTS_PER_JOB)
    )
    return hits, first


def pi_by_monte_carlo() -> None:
    """Estimate pi by one map and check the random streams."""
    started = time.perf_counter()
    jids = cloud.map(throw_darts, range(PI_JOBS), _label="primer-pi")
    answers = cloud.result(jids)
    seconds = time.perf_counter() - started
    estimate = 4 * sum(hits for hits, _ in answers) / (POINTS_PER_JOB * PI_JOBS)
    streams = len({first for _, first in answers})
    if streams != PI_JOBS:
        raise SystemExit(f"only {streams} of {PI_JOBS} jobs had a random stream of their own")
    if abs(estimate - math.pi) > 0.01:
        raise SystemExit(f"pi came out as {estimate}: something is wrong with the darts")
    print(
        f"pi is about {estimate:.5f} (off by {abs(estimate - math.pi):.5f}), from {POINTS_PER_JOB * PI_JOBS:,} darts"
    )
    print(f"{PI_JOBS} jobs, {streams} independent random streams, {seconds:.2f} s")
    print_usage(jids)


def score(settings: tuple[float, float]) -> float:
    """Return the cross-validated accuracy of a support vector machine on the digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    gamma, penalty = settings
    images, digits = load_digits(return_X_y=True)
    return float(cross_val_score(SVC(gamma=gamma, C=penalty), images, digits, cv=3).mean())


def search_settings() -> None:
    """Score every setting in a plain loop and by one map; the scores must agree."""
    settings = [(gamma, penalty) for gamma in GAMMAS for penalty in PENALTIES]
    plain, plain_seconds = timed(lambda: [score(s) for s in settings])
    jids = []

    def by_map() -> list[float]:
        jids.append(cloud.map(score, settings, _label="primer-digits"))
        return cloud.result(jids[0])

    mapped, mapped_seconds = timed(by_map)
    if plain != mapped:
        raise SystemExit("the loop and the map gave different scores")
    best = max(zip(mapped, settings, strict=True))
    print(
        f"best accuracy {best[0]:.4f} with gamma={best[1][0]}, C={best[1][1]}; {len(settings)} settings, same scores both ways"
    )
    print(
        f"plain loop {plain_seconds:.2f} s, cloud.map {mapped_seconds:.2f} s: {plain_seconds / mapped_seconds:.2f} times as fast"
    )
    print_usage(jids[0])


def failing_job() -> None:
    """Show what a failure looks like."""

    def average(numbers: list[float]) -> float:
        return sum(numbers) / len(numbers)

    jid = cloud.call(average, [], _label="primer-failure")
    try:
        cloud.result(jid)
    except cloud.CloudException as error:
        print(f"status {cloud.status(jid)!r}; the error, with the remote traceback:\n")
        print("\n".join("    " + line for line in str(error).splitlines()))
    else:
        raise SystemExit("the average of nothing should have failed")


# ------------------------------------------------------------------------------------- report
def timed(work: Callable[[], list[float]]) -> tuple[list[float], float]:
    """Return what ``work`` returns and the seconds it took."""
    started = time.perf_counter()
    value = work()
    return value, time.perf_counter() - started


def print_usage(jids: "cloud.Jids") -> None:
    """Print what the jobs used, one line for all of them."""
    found = cloud.info(jids, ["runtime", "cputime", "memory", "cost"]).values()
    runtime = sum(job["runtime"] for job in found)
    cpu = sum(job["cputime.user"] + job["cputime.system"] for job in found)
    peak = max(job["memory.max_usage"] or 0 for job in found)
    cost = sum(job["cost"] or 0 for job in found)
    print(
        f"used: {runtime:.2f} s in jobs, {cpu:.2f} s of CPU, largest memory {peak / 2**20:.0f} MiB, cost ${cost:.6f}"
    )


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    main()
