import copy
import pickle

import pytest
import torch

from projects_maskrcnn.embedded.structures import Boxes, Instances
from projects_maskrcnn.embedded.structures.instances import Deferred


@pytest.fixture
def instances():
    boxes = Boxes(torch.arange(12.0).reshape(3, 4))
    return Instances((40, 50), pred_boxes=boxes, scores=torch.tensor([0.1, 0.2, 0.3]), names=["a", "b", "c"])


def test_fields(instances):
    assert instances.image_size == (40, 50) and len(instances) == 3
    instances.pred_classes = torch.tensor([4, 5, 6])
    assert instances.pred_classes is instances.get("pred_classes") is instances.get_fields()["pred_classes"]
    assert instances.has("pred_classes")
    instances.remove("pred_classes")
    assert not instances.has("pred_classes") and not hasattr(instances, "pred_classes")
    instances.set("scores", torch.zeros(3))
    assert instances.scores.sum() == 0


def test_errors(instances):
    with pytest.raises(AttributeError, match="no field 'masks'.*scores"):
        _ = instances.masks
    with pytest.raises(ValueError, match="'masks' has length 2, but there are 3"):
        instances.masks = torch.zeros(2)
    with pytest.raises(IndexError):
        instances[3]
    with pytest.raises(TypeError):
        iter(instances)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


@pytest.mark.parametrize(("item", "names"), [(0, "a"), (-1, "c"), (-3, "a"), (slice(1, 3), "bc"), (slice(0, 0), "")])
def test_indexing_applies_to_every_field(instances, item, names):
    picked = instances[item]
    rows = ["abc".index(name) for name in names]
    assert picked.names == list(names) and picked.image_size == (40, 50)
    assert torch.equal(picked.scores, instances.scores[rows])
    assert torch.equal(picked.pred_boxes.tensor, instances.pred_boxes.tensor[rows])


def test_indexing_by_tensors(instances):
    instances.remove("names")
    assert instances[torch.tensor([2, 0])].scores.tolist() == instances.scores[[2, 0]].tolist()
    assert instances[instances.scores > 0.15].pred_boxes.tensor[:, 0].tolist() == [4, 8]
    assert len(instances[instances.scores > 1]) == 0


def test_to_moves_what_can_be_moved(instances):
    moved = instances.to("meta")
    assert moved.scores.device.type == moved.pred_boxes.device.type == "meta" and moved.names == [
        "a",
        "b",
        "c",
    ]
    assert instances.scores.device.type == "cpu"


def test_cat(instances):
    more = instances[1:]
    more.extra = torch.zeros(2)  # fields that the first lacks are dropped
    joined = Instances.cat([instances, more])
    assert joined.names == ["a", "b", "c", "b", "c"] and not joined.has("extra")
    assert torch.equal(joined.pred_boxes.tensor, instances.pred_boxes.tensor[[0, 1, 2, 1, 2]])
    assert torch.equal(joined.scores, instances.scores[[0, 1, 2, 1, 2]])
    with pytest.raises(ValueError, match="extra"):
        Instances.cat([more, instances])
    with pytest.raises(ValueError, match="another image size"):
        Instances.cat([instances, Instances((1, 1), **instances.get_fields())])
    with pytest.raises(ValueError, match="one or more"):
        Instances.cat([])
    with pytest.raises(ValueError, match="'text' is a str"):
        Instances.cat([Instances((1, 1), text="a")] * 2)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(instances, duplicate):
    again = duplicate(instances)
    assert again.names == instances.names and again.image_size == (40, 50)
    assert torch.equal(again.pred_boxes.tensor, instances.pred_boxes.tensor)


def test_text_shows_the_fields(instances):
    assert "num_instances=3, image_height=40, image_width=50" in str(instances) and "scores" in repr(instances)
    assert "num_instances=0" in str(Instances((1, 1)))


class Squares(Deferred):
    def __init__(self, numbers):
        self.numbers, self.made = numbers, 0

    def make(self):
        self.made += 1
        return self.numbers**2

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, item):
        return Squares(self.numbers[item])

    def to(self, *args):
        return Squares(self.numbers.to(*args))

    @staticmethod
    def cat(parts):
        return Squares(torch.cat([p.numbers for p in parts]))


def test_a_deferred_field_is_made_once_when_it_is_read(instances):
    squares = Squares(torch.tensor([1, 2, 3]))
    instances.remove("names")
    instances.squares = squares
    some = Instances.cat([instances[1:], instances[torch.tensor([True, False, False])]]).to("cpu")
    assert len(some) == 3 and str(some) and squares.made == 0
    assert some.deferred("squares") is not None and some.deferred("scores") is None and some.deferred("none") is None
    assert some.squares.tolist() == [4, 9, 1]
    assert some.deferred("squares") is None
    assert instances.get_fields()["squares"] is instances.squares and squares.made == 1
    joined = Instances.cat([instances, some])
    assert joined.squares.tolist() == [1, 4, 9, 4, 9, 1]
