"""torchvision's VGG-16, for the backbone and the box head that Faster R-CNN makes of it."""

from torch import Tensor

from .torchvision_names import DEFAULT_INPUT, InputFormat, fold

CONVS = {
    0: "conv1_1", 2: "conv1_2",
    5: "conv2_1", 7: "conv2_2",
    10: "conv3_1", 12: "conv3_2", 14: "conv3_3",
    17: "conv4_1", 19: "conv4_2", 21: "conv4_3",
    24: "conv5_1", 26: "conv5_2", 28: "conv5_3",
}  # fmt: skip
"""The numbers of its convs, between which ReLU and pooling count too, and their names in the paper."""

LAYERS = {f"features.{number}": name for number, name in CONVS.items()}
LAYERS |= {"classifier.0": "box_head.fc1", "classifier.3": "box_head.fc2"}


def is_vgg16(weights: dict[str, Tensor]) -> bool:
    """Whether these are the tensors of VGG-16, without batch norm."""
    names = {f"{layer}.weight" for layer in LAYERS}
    return names <= weights.keys() and all(weights[name].dim() > 1 for name in names)


def from_vgg16(weights: dict[str, Tensor], images: InputFormat = DEFAULT_INPUT) -> dict[str, Tensor]:
    """Weights under the ends of our names, for the model's images; the classifier of ImageNet is left out."""
    named = {
        f"{ours}.{role}": weights[f"{layer}.{role}"] for layer, ours in LAYERS.items() for role in ("weight", "bias")
    }
    return named | {"conv1_1.weight": fold(named["conv1_1.weight"], images)}
