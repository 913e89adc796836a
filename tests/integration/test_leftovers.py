"""What earlier agents left is removed, whatever a job made of it."""

import os

import pytest

from picloud_services.agent.leftovers import find_containers, hold_layer, remove_stray_layers
from picloud_services.agent.overlay import remove_tree
from tests.tools.deep_folders import make_deep


@pytest.fixture(autouse=True)
def emptied(tmp_path):
    yield
    remove_tree(str(tmp_path))  # what is too deep for pytest


def test_stray_layers_go_however_deep_a_job_nested_folders(tmp_path):
    for name in ("deep", "other", "held"):
        (tmp_path / "layers" / name / "tmp").mkdir(parents=True)
    make_deep(tmp_path / "layers" / "deep" / "tmp", 1_200)
    (tmp_path / "layers" / "other" / "tmp").chmod(0)
    held = hold_layer(str(tmp_path / "layers" / "held"))
    try:
        remove_stray_layers(tmp_path, alive=set())
    finally:
        os.close(held)
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["held"]


def test_a_folder_without_an_order_goes_however_deep_it_is(tmp_path):
    (tmp_path / "c" / "x" / "run").mkdir(parents=True)
    make_deep(tmp_path / "c" / "x" / "run", 1_200)
    assert list(find_containers(tmp_path)) == []
    assert list((tmp_path / "c").iterdir()) == []
