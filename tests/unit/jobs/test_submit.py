"""Values of a spec that the service relies on: what is refused, by name."""

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import Kind, RetryPolicy
from picloud_services.jobs.submit import check_spec
from tests.tools.job_system import spec


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"gpus": -1}, "_gpu"),  # it would add to what a node has
        ({"retries": RetryPolicy(1, (), float("inf"))}, "_retries"),
        ({"retries": RetryPolicy(1, (), float("nan"))}, "_retries"),
        ({"retries": RetryPolicy(1, (), -1.0)}, "_retries"),
        ({"max_runtime_seconds": 0.0}, "_max_runtime"),
        ({"kind": Kind.MACHINE}, "kind"),  # nothing runs one: it would be run as a call
        ({"fast_serialization": 3}, "_fast_serialization"),
        ({"max_result_bytes": -1}, "max_result_bytes"),
        ({"depends_on_errors": "x"}, "_depends_on_errors"),
    ],
)
def test_spec_when_a_value_is_out_of_range_then_refused_by_name(fields, name):
    with pytest.raises(InvalidRequest, match=name):
        check_spec(spec(**fields), "")
