import numpy as np
import pytest
import torch

from projects_maskrcnn.embedded.structures import Keypoints, heatmaps_to_keypoints


def test_behaves_like_a_tensor():
    tensor = torch.arange(24.0).reshape(4, 2, 3)
    keypoints = Keypoints(tensor)
    for item in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, False, True])):
        assert torch.equal(keypoints[item].tensor, tensor[item])
    assert torch.equal(keypoints[-1].tensor, tensor[3:]) and len(keypoints) == 4
    assert torch.equal(Keypoints.cat([keypoints, keypoints[:1]]).tensor, tensor[[0, 1, 2, 3, 0]])
    assert torch.equal(Keypoints(tensor.double().numpy()).tensor, tensor)
    assert torch.equal(Keypoints(tensor.tolist()).tensor, tensor)
    assert keypoints.to("meta").device.type == "meta"
    with pytest.raises(ValueError, match=r"\(N, K, 3\)"):
        Keypoints(np.zeros((4, 17)))


def test_to_heatmap_by_hand():
    # The box spans 40 by 20 pixels, so that each of the 4 x 4 cells is 10 wide and 5 high.
    box = torch.tensor([[100.0, 50.0, 140.0, 70.0]])
    points = [
        ((100, 50, 2), 0, 1),  # the corner is in the first cell
        ((119.9, 54.9, 1), 1, 1),  # hidden counts
        ((120, 55, 2), 6, 1),  # a cell starts at its upper left
        ((140, 70, 2), 15, 1),  # the far edges belong to the last cell
        ((140.1, 60, 2), 0, 0),  # outside
        ((99.9, 60, 2), 0, 0),
        ((120, 60, 0), 0, 0),  # not labelled
    ]
    cells, valid = Keypoints([[point for point, _, _ in points]]).to_heatmap(box, 4)
    assert cells.tolist() == [[cell for _, cell, _ in points]] and cells.dtype == torch.int64
    assert valid.tolist() == [[flag for _, _, flag in points]] and valid.dtype == torch.int64


def test_to_heatmap_without_boxes_or_area():
    cells, valid = Keypoints(torch.zeros(0, 17, 3)).to_heatmap(torch.zeros(0, 4), 56)
    assert cells.shape == valid.shape == (0, 17)
    _, valid = Keypoints([[[3.0, 4.0, 2.0]]]).to_heatmap(torch.tensor([[3.0, 0.0, 3.0, 8.0]]), 56)
    assert valid.shape == (1, 1)


def test_peak_of_a_heatmap_at_its_own_size():
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 2, 5] = maps[0, 1, 7, 0] = 3.0
    x, y, logit, score = heatmaps_to_keypoints(maps, torch.tensor([[10.0, 20.0, 18.0, 28.0]])).unbind(-1)
    assert x.tolist() == [[15.5, 10.5]] and y.tolist() == [[22.5, 27.5]] and logit.tolist() == [[3, 3]]
    torch.testing.assert_close(score, torch.full((1, 2), np.exp(3) / (np.exp(3) + 63), dtype=torch.float32))


def test_peaks_are_where_keypoints_were_drawn():
    boxes = torch.tensor([[3.0, 5.0, 59.0, 61.0], [0.0, 10.0, 14.0, 38.0]])
    points = torch.tensor([[[20.2, 30.7, 2.0], [50.1, 6.3, 2.0]], [[1.0, 37.0, 2.0], [13.2, 11.1, 2.0]]])
    cells, _ = Keypoints(points).to_heatmap(boxes, 56)
    maps = torch.nn.functional.one_hot(cells, 56 * 56).reshape(2, 2, 56, 56).float() * 50
    found = heatmaps_to_keypoints(maps, boxes)
    assert ((found[..., :2] - points[..., :2]).abs() <= 1).all()


def test_agrees_with_detectron2(shared):
    units = np.load(shared / "parity" / "units.npz")
    found = heatmaps_to_keypoints(torch.from_numpy(units["in_kp_maps"]), torch.from_numpy(units["in_kp_rois"]))
    torch.testing.assert_close(found, torch.from_numpy(units["out_kp"]), rtol=1e-5, atol=1e-5)


def test_no_rois_tiny_rois_and_gradients():
    assert heatmaps_to_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 4)
    maps = torch.ones(1, 1, 4, 4, requires_grad=True)
    found = heatmaps_to_keypoints(maps, torch.tensor([[5.0, 6.0, 5.0, 6.2]]))  # taken as a pixel wide and high
    assert found[0, 0, :2].tolist() == [5.5, 6.5] and not found.requires_grad
