import tarfile

import pytest

from picloud_jupyter.cli.bundle_parts import Redactor
from picloud_jupyter.cli.debug_bundle import Bundle


@pytest.mark.parametrize(
    ("name", "folder"),
    [("b.tar.gz", "b"), ("b.tgz", "b"), ("b.gz", "b"), ("b", "b.d"), ("b.2026", "b.2026.d")],
)
def test_folder_inside_is_never_called_like_the_file(tmp_path, name, folder):
    bundle = Bundle(Redactor(()))
    bundle.add("facts.json", "facts", {"a": 1})
    bundle.write(tmp_path / name, "today", 0.0)
    with tarfile.open(tmp_path / name) as archive:
        assert sorted(archive.getnames()) == [f"{folder}/README.txt", f"{folder}/facts.json"]
