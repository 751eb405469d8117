"""PASCAL VOC's XML files to dataset dicts."""

import pytest

from projects_maskrcnn.embedded.data import DatasetCatalog, MetadataCatalog
from projects_maskrcnn.embedded.data.datasets import load_voc_instances, register_pascal_voc
from projects_maskrcnn.embedded.structures import BoxMode

OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult><bndbox>"
    "<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
)
XML = "<annotation><size><width>60</width><height>40</height><depth>3</depth></size>{}</annotation>"
CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("000012\n2008_000001  1\n\n")
    objects = OBJECT.format(1, 1, 60, 40, name="dog", difficult=1) + OBJECT.format(5, 7, 5, 9, name="cat", difficult=0)
    (tmp_path / "Annotations/000012.xml").write_text(XML.format(objects))
    (tmp_path / "Annotations/2008_000001.xml").write_text(XML.format(""))
    return tmp_path


def test_load(folder):
    first, second = load_voc_instances(str(folder), "train", CLASSES)
    assert first["image_id"] == "000012" and first["file_name"] == str(folder / "JPEGImages/000012.jpg")
    assert (first["height"], first["width"]) == (40, 60)
    # pixels 1 to 60 are the whole width; a box of pixel 5 alone is one pixel wide
    assert [a["bbox"] for a in first["annotations"]] == [[0, 0, 60, 40], [4, 6, 5, 9]]
    assert [a["category_id"] for a in first["annotations"]] == [1, 0]
    assert {a["bbox_mode"] for a in first["annotations"]} == {BoxMode.XYXY_ABS}
    assert second["image_id"] == "2008_000001" and second["annotations"] == []


def test_register(folder):
    register_pascal_voc("pets", str(folder), "train", 2012, CLASSES)
    try:
        assert len(DatasetCatalog.get("pets")) == 2
        metadata = MetadataCatalog.get("pets")
        assert metadata.as_dict() == {
            "name": "pets",
            "thing_classes": ["cat", "dog"],
            "dirname": str(folder),
            "year": 2012,
            "split": "train",
        }
    finally:
        DatasetCatalog.remove("pets")
        MetadataCatalog.remove("pets")


def test_builtin_names():
    names = {name for name in DatasetCatalog.list() if name.startswith("voc_")}
    assert names == {f"voc_2007_{s}" for s in ("train", "val", "trainval", "test")} | {
        f"voc_2012_{s}" for s in ("train", "val", "trainval")
    }
    metadata = MetadataCatalog.get("voc_2007_test")
    assert len(metadata.thing_classes) == 20 and metadata.thing_classes == sorted(metadata.thing_classes)
    assert metadata.evaluator_type == "pascal_voc" and metadata.year == 2007


BOMB = '<!DOCTYPE a [<!ENTITY b "boom">]>' + XML.format("<object><name>&b;</name></object>")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("not xml", "000012.xml"),
        ("<annotation></annotation>", "000012.xml"),
        (XML.format("<object><name>cat</name></object>"), "000012.xml"),
        (XML.format(OBJECT.format("1", "1", "many", "2", name="cat", difficult=0)), "000012.xml.*many"),
        (XML.format(OBJECT.format(1, 1, 2, 2, name="cow", difficult=0)), "000012.xml.*'cow'.*cat, dog"),
        (BOMB, "000012.xml.*document type"),
    ],
)
def test_a_damaged_file_is_named(xml, message, folder):
    (folder / "Annotations/000012.xml").write_text(xml)
    with pytest.raises(ValueError, match=message):
        load_voc_instances(str(folder), "train", CLASSES)


def test_a_missing_split_is_named(folder):
    with pytest.raises(FileNotFoundError, match="trainval.txt.*DETECTRON2_DATASETS"):
        load_voc_instances(str(folder), "trainval", CLASSES)
