"""The one line of progress in a notebook's own outputs, as a kernel sends them to any client."""

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.usefixtures("service")

CODE = """
import time
from picloud_jupyter import cloud

def work(i):
    time.sleep(0.5)  # together longer than the second that is not worth a line
    return 1 / (i - 3)

jids = cloud.map(work, range(8))
cloud.join(jids, ignore_errors=True)
"""


@pytest.fixture(scope="module")
def executed(service):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return notebook


def test_progress_of_a_map_is_one_output_that_ends_with_the_counts(executed):
    (output,) = executed.cells[0].outputs
    assert output.output_type == "display_data"
    text = output.data["text/plain"]
    assert "7/8 done, 1 failed, in " in text
    assert text.startswith("[####################]")


def test_progress_when_the_notebook_is_converted_needs_no_widget(executed):
    assert "widgets" not in executed.metadata
    assert set(executed.cells[0].outputs[0].data) == {"text/plain"}
