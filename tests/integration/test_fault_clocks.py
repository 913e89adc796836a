"""The clocks that a row of faults moves: the processes of the service do take their time from there."""

import os
import subprocess
import sys
import time

from tests.faults.clocks import SKEW, YEAR, Clocks


def test_clock_of_a_role_jumps_and_that_of_others_does_not(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SKEW)
    clocks = Clocks(tmp_path)

    def ahead(role: str) -> float:
        words = ["-c", "import time; print(time.time())", "picloud_services", role]
        said = subprocess.check_output(
            [sys.executable, *words], env={**os.environ, "PYTHONPATH": str(tmp_path)}
        )
        return float(said) - time.time()

    assert not clocks.jump(("control",), 0)
    assert not clocks.are_taken()
    assert clocks.jump(("control",), YEAR)
    assert abs(ahead("control") - YEAR) < 60
    assert abs(ahead("agent")) < 60
    assert clocks.are_taken()
    assert abs(ahead("launcher")) < 60
    assert not clocks.jump(("control",), YEAR)
