"""The catalogs: registration, look-up, consistency, and what their errors say."""

import copy
import pickle

import pytest

from projects_maskrcnn.embedded.data.catalog import DatasetCatalog, Metadata, MetadataCatalog


@pytest.fixture
def name():
    name = "catalog_test_animals_train"
    DatasetCatalog.register(name, lambda: [{"image_id": 7}])
    yield name
    DatasetCatalog.remove(name)


def test_registered_dataset_is_loaded_at_each_get(name):
    assert DatasetCatalog.get(name) == [{"image_id": 7}]
    assert DatasetCatalog.get(name) is not DatasetCatalog.get(name)
    assert name in DatasetCatalog and name in DatasetCatalog.list()


def test_register_twice(name):
    with pytest.raises(AssertionError, match=f"'{name}' is already registered.*DatasetCatalog.remove"):
        DatasetCatalog.register(name, list)


def test_register_no_function():
    with pytest.raises(TypeError, match="'catalog_test_list'.*not a list"):
        DatasetCatalog.register("catalog_test_list", [{"image_id": 7}])


def test_unknown_name_lists_near_names_and_remedy(name):
    with pytest.raises(KeyError, match=f"catalog_test_animal_trian.*{name}.*register_coco_instances") as error:
        DatasetCatalog.get("catalog_test_animal_trian")
    assert "cityscapes" not in str(error.value)  # not near


def test_metadata_keeps_its_values():
    metadata = Metadata(name="m").set(thing_classes=["a"], json_file="x.json")
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match=r"'thing_classes' of dataset 'm'.*\['a'\] != \['b'\]"):
        metadata.thing_classes = ["b"]
    assert metadata.thing_classes == ["a"]
    assert metadata.as_dict() == {"name": "m", "thing_classes": ["a"], "json_file": "x.json"}


def test_metadata_absent_attribute():
    metadata = Metadata(name="m", thing_classes=["a"])
    with pytest.raises(AttributeError, match="'m' has no 'keypoint_names'; it has: thing_classes"):
        _ = metadata.keypoint_names
    assert metadata.get("keypoint_names") is None and metadata.get("keypoint_names", 3) == 3
    assert not hasattr(metadata, "keypoint_names")


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_metadata_can_be_copied(clone):
    assert clone(Metadata(name="m", thing_classes=["a"])).as_dict() == {"name": "m", "thing_classes": ["a"]}


def test_metadata_is_one_object_a_name():
    first = MetadataCatalog.get("catalog_test_metadata")
    assert MetadataCatalog.get("catalog_test_metadata") is first
    MetadataCatalog.remove("catalog_test_metadata")
    assert MetadataCatalog.get("catalog_test_metadata") is not first
    MetadataCatalog.remove("catalog_test_metadata")
    with pytest.raises(ValueError, match="empty"):
        MetadataCatalog.get("")
