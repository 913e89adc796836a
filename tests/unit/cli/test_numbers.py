"""Numbers on the command line, and how much `picloud top` and `status` show."""

import pytest

from picloud_jupyter.cli.exit_codes import WRONG_USAGE
from picloud_jupyter.cli.quota_words import used_of
from picloud_jupyter.cli.run import run
from picloud_jupyter.cli.service import describe_service
from picloud_jupyter.cli.top import fit


@pytest.mark.parametrize(
    "words",
    [
        "join 1 -t -5",
        "result 1 -t nan",
        "wait-for status 1 done -t inf",
        "top -d inf",
        "list -n -3",
        "list -n x",
    ],
)
def test_a_number_that_means_nothing_is_wrong_usage(words, capsys):
    assert run(words.split()) == WRONG_USAGE
    assert "from 0 up" in capsys.readouterr().err


def test_choices_are_shown_as_they_are_typed(capsys):
    assert run(["exec", "--network", "all", "true"]) == WRONG_USAGE
    assert "(choose from 'internet', 'none')" in capsys.readouterr().err


def test_what_is_longer_than_the_screen_is_counted():
    text = "\n".join(["a head that is too wide", *map(str, range(50))])
    lines = fit(text, 6, 10).splitlines()
    assert lines == ["a head", *map(str, range(8)), "... 42"]
    assert fit("1\n2", 80, 2) == "1\n2"


def test_status_says_that_the_state_is_not_where_it_was_asked_to_be():
    note = "/net/home is on NFS: state is in /var/tmp/picloud-0-1234"
    assert note in describe_service({"note": note}, 0.0)
    assert "note" not in describe_service({"note": ""}, 0.0)


def test_a_cost_is_in_dollars_however_large():
    use = {"cores": 0.0, "memory_bytes": 0, "disk_bytes": 0, "cost": 123.4}
    assert used_of({"use": use, "quota": use | {"cost": 12000.0}})["cost"] == (
        "$123.40 of $12,000.00"
    )
