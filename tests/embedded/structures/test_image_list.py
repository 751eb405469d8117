import pytest
import torch

from projects_maskrcnn.embedded.structures import ImageList


def images(*sizes, dtype=torch.float32):
    return [torch.full((3, h, w), i + 1, dtype=dtype) for i, (h, w) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "kwargs", "padded"),
    [
        ([(5, 7)], {}, (5, 7)),
        ([(5, 7), (6, 3)], {}, (6, 7)),
        ([(5, 7), (6, 3)], {"size_divisibility": 4}, (8, 8)),
        ([(8, 4)], {"size_divisibility": 4}, (8, 4)),
        ([(5, 7)], {"size_divisibility": 4, "padding_constraints": {"square_size": 0}}, (8, 8)),
        ([(5, 7)], {"padding_constraints": {"square_size": 16}}, (16, 16)),
        ([(5, 7)], {"size_divisibility": 4, "padding_constraints": {"size_divisibility": 5}}, (5, 10)),
        ([(5, 7)], {"padding_constraints": {"size_divisibility": 8, "square_size": 10}}, (16, 16)),
    ],
)
@pytest.mark.parametrize("pad_value", [0.0, -2.5])
def test_pads_below_and_to_the_right(sizes, kwargs, padded, pad_value):
    inputs = images(*sizes)
    batch = ImageList.from_tensors(inputs, pad_value=pad_value, **kwargs)
    assert batch.tensor.shape == (len(sizes), 3, *padded)
    assert batch.image_sizes == sizes and len(batch) == len(sizes)
    for i, (image, (h, w)) in enumerate(zip(inputs, sizes, strict=True)):
        assert torch.equal(batch[i], image)
        assert (batch.tensor[i, :, h:] == pad_value).all() and (batch.tensor[i, :, :, w:] == pad_value).all()


def test_keeps_type_and_any_leading_dimensions():
    batch = ImageList.from_tensors([torch.ones(4, 5, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64)])
    assert batch.tensor.shape == (2, 4, 9) and batch.tensor.dtype == torch.int64
    moved = batch.to(torch.float64)
    assert moved.tensor.dtype == torch.float64 and moved.image_sizes == batch.image_sizes
    assert batch.to("meta").device.type == "meta"


def test_what_is_refused():
    for bad in ([], [torch.ones(3, 4, 4), torch.ones(1, 4, 4)]):
        with pytest.raises(ValueError, match="height and width alone"):
            ImageList.from_tensors(bad)
    with pytest.raises(ValueError, match="7 pixels do not fit the square_size of 6"):
        ImageList.from_tensors(images((5, 7)), padding_constraints={"square_size": 6})
