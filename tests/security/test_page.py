"""The list of negative tests in docs/security.md is the one that is run."""

import os

import pytest

from tests.tools.security_page import PAGE, count_cases, with_table


@pytest.mark.skipif(os.geteuid() != 0, reason="the page counts what root runs")
def test_the_page_counts_the_cases_that_there_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page, count_cases()), (
        "run `python -m tests.tools.security_page` and commit the page"
    )
