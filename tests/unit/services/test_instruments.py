"""What Prometheus reads, read by its own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from picloud_services.base.instruments import (
    Histogram,
    Metric,
    by_label,
    counter,
    exposition,
    gauge,
)


def parsed(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_families_when_read_back_then_kinds_labels_and_values_are_the_same():
    text = exposition(
        [
            gauge("leases", "Given out.", 2),
            counter("starts_total", "Starts.", 3.5),
            Metric(
                "http_requests_total", "counter", "All.", [({"route": "a", "code": "2"}, 7)]
            ),
        ]
    )
    found = parsed(text)
    assert found["picloud_leases"].type == "gauge"
    assert found["picloud_leases"].documentation == "Given out."
    assert found["picloud_starts"].samples[0].value == 3.5
    sample = found["picloud_http_requests"].samples[0]
    assert (sample.labels, sample.value) == ({"route": "a", "code": "2"}, 7)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "two\nlines", "ü"])
def test_label_when_it_has_odd_characters_then_they_come_back(name):
    text = exposition([by_label("containers", "gauge", "By state.", "state", {name: 1})])
    assert parsed(text)["picloud_containers"].samples[0].labels == {"state": name}


def test_histogram_when_read_back_then_each_bucket_holds_what_is_at_most_its_bound():
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(value)
    family = parsed(exposition([], [("commit_seconds", "Commits.", histogram)]))[
        "picloud_commit_seconds"
    ]
    assert family.type == "histogram"
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert buckets == {"0.1": 2, "1": 3, "+Inf": 4}
    others = {s.name.rpartition("_")[2]: s.value for s in family.samples if not s.labels}
    assert others == {"sum": pytest.approx(3.65), "count": 4}


def test_names_of_the_process_itself_have_no_prefix():
    assert "process_open_fds 3\n" in exposition([gauge("process_open_fds", "Open.", 3)])
