"""Datasets that are but annotations."""

import json

import pytest

from projects_maskrcnn.embedded.data import MetadataCatalog


@pytest.fixture
def register(tmp_path, request):
    """Registers metadata for annotations (a dict or a file) and returns the dataset's name."""
    names = []

    def register(annotations):
        path = annotations
        if isinstance(annotations, dict):
            path = tmp_path / "annotations.json"
            path.write_text(json.dumps(annotations))
        categories = sorted(json.loads(path.read_text())["categories"], key=lambda c: c["id"])
        name = f"{request.node.name}_{len(names)}"
        names.append(name)
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=[c["name"] for c in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        )
        return name

    yield register
    for name in names:
        MetadataCatalog.pop(name)
