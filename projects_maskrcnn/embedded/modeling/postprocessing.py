"""Detections from the network's input resolution to the image's."""

from ..structures import Instances, PastedMasks, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Detections in pixels of an `output_height` x `output_width` image; boxes without area are dropped.

    Stands for Detectron2's `detector_postprocess`. `pred_masks` (N, 1, M, M) become (N, height, width) bool, which are
    made when they are first read.
    """
    scale_y = output_height / results.image_size[0]
    scale_x = output_width / results.image_size[1]
    results = Instances((output_height, output_width), **results.get_fields())
    boxes = results.pred_boxes if results.has("pred_boxes") else results.proposal_boxes
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        masks = results.pred_masks
        masks = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
        boxes = results.pred_boxes.tensor.clone()
        results.pred_masks = PastedMasks(masks, boxes, (output_height, output_width), mask_threshold)
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results
