"""The logs read back: over files that were begun anew, damaged lines and long spans."""

import json
import time

import pytest

from picloud_services.base.log_lines import MAX_LINES, at_of, read_lines

BEGAN_AT = 1_700_000_000.0


def line(seconds, **fields):
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(BEGAN_AT + seconds))
    fraction = f"{seconds % 1:.3f}"[1:]
    return json.dumps({"at": f"{moment}{fraction}Z", "level": "info", **fields}) + "\n"


@pytest.fixture
def home(tmp_path):
    return tmp_path


def said(home, since=0.0, until=1000.0, wanted=lambda _line: True):
    found = read_lines(home, BEGAN_AT + since, BEGAN_AT + until, wanted)
    return [entry["message"] for entry in found.lines]


def test_lines_of_both_logs_and_their_older_files_come_in_order_of_time(home):
    (home / "service.log.1").write_text(line(1, message="first"))
    (home / "service.log").write_text(line(4, message="last"))
    (home / "agent.log").write_text(line(2.5, message="between"))
    assert said(home) == ["first", "between", "last"]


def test_lines_outside_the_span_or_not_wanted_are_left_out(home):
    lines = [line(n, message=str(n), jid=n) for n in range(10)]
    (home / "service.log").write_text("".join(lines))
    assert said(home, 2, 6, lambda entry: entry["jid"] != 4) == ["2", "3", "5", "6"]


def test_what_is_no_log_line_is_passed_over(home):
    broken = line(1, message="cut")[:-9] + "\nTraceback of an interpreter\n{}\n[1]\n"
    (home / "service.log").write_bytes(broken.encode() + b"\xff\xfe\n" + b'{"at": "never"}\n')
    with open(home / "service.log", "a") as file:
        file.write(line(2, message="well"))
    assert said(home) == ["well"]


def test_a_link_in_the_place_of_a_log_is_not_followed(home, tmp_path):
    (tmp_path / "other").write_text(line(1, message="of somebody else"))
    (home / "service.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        said(home)


def test_many_lines_when_read_then_the_newest_are_kept(home):
    lines = [line(n / 10, message=str(n)) for n in range(MAX_LINES + 5)]
    (home / "service.log").write_text("".join(lines))
    found = said(home)
    assert (len(found), found[0], found[-1]) == (MAX_LINES, "5", str(MAX_LINES + 4))


def test_oldest_when_the_first_files_are_gone_then_when_the_rest_begins(home):
    for number in (1, 2, 3):
        (home / f"service.log.{number}").write_text(line(50 - 10 * number, message="x"))
    (home / "service.log").write_text(line(60, message="x"))
    assert read_lines(home, BEGAN_AT, BEGAN_AT + 99, lambda _: True).oldest_at == BEGAN_AT + 20
    (home / "service.log.3").unlink()
    assert read_lines(home, BEGAN_AT, BEGAN_AT + 99, lambda _: True).oldest_at == 0.0


def test_time_of_a_line_is_what_was_written():
    assert at_of(json.loads(line(1.25))) == pytest.approx(BEGAN_AT + 1.25)
