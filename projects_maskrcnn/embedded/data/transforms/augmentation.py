"""The augmentation protocol: a policy looks at the input, chooses a transform, which is applied."""

import inspect
from typing import Any, Protocol

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class SupportsTransform(Protocol):
    """What an augmentation needs of its input, besides the attributes that its policy asks for."""

    def transform(self, tfm: Transform) -> None:
        """Transform all attributes in place."""


class Augmentation:
    """A policy, often random, that chooses a `Transform`. Stands for Detectron2's class of that name.

    A subclass implements `get_transform`; the names of its parameters are the attributes of the input that it
    gets: ``image`` (H, W) or (H, W, C), uint8 or float; ``boxes`` (N, 4) float32 xyxy in pixels of that
    image; ``sem_seg`` (H, W) uint8. A sole parameter of any name is the image.

    Random numbers come from numpy's global generator, which the training loader seeds for each sample.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any]) -> None:
        """Keep the constructor's arguments as attributes: `self._init(locals())`."""
        self.__dict__.update((k, v) for k, v in params.items() if k != "self" and not k.startswith("_"))

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for this input."""
        raise NotImplementedError(f"{type(self).__name__}.get_transform")

    def __call__(self, aug_input: SupportsTransform) -> Transform:
        """Choose a transform, apply it to the input in place, and return it."""
        transform = self.get_transform(*self._arguments(aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform returned {type(transform).__name__}, no Transform")
        aug_input.transform(transform)
        return transform

    def _arguments(self, aug_input: SupportsTransform) -> list[Any]:
        if self.input_args is None:
            parameters = inspect.signature(self.get_transform).parameters.values()
            if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
                raise TypeError(f"{type(self).__name__}.get_transform: name the inputs, or override __call__")
            self.input_args = tuple(p.name for p in parameters) if len(parameters) > 1 else ("image",)
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(f"{type(self).__name__} needs {missing} of its {type(aug_input).__name__}")
        return [getattr(aug_input, name) for name in self.input_args]

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: int | tuple[int, ...] | None = None
    ) -> float | np.ndarray:
        """Uniform in [low, high), or in [0, low) where `high` is not given."""
        return np.random.uniform(*((0, low) if high is None else (low, high)), size)

    def __repr__(self) -> str:
        """The constructor call, without the arguments that have their default values."""
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in inspect.signature(type(self)).parameters.items()
            if hasattr(self, name) and getattr(self, name) is not parameter.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


class _Always(Augmentation):
    """The policy that always chooses one transform."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


def as_augmentation(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    """The augmentation itself, or the one that always chooses the given transform."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _Always(tfm_or_aug)
    raise TypeError(f"Expected a Transform or an Augmentation, got {type(tfm_or_aug).__name__}")


class AugmentationList(Augmentation):
    """Augmentations applied one after the other, each to the result of those before."""

    def __init__(self, augs: list[Augmentation | Transform]) -> None:
        self.augs = [as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: SupportsTransform) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"


class AugInput:
    """An image, and what is transformed along with it.

    Args:
        image: (H, W) or (H, W, C); uint8 in [0, 255], or float in [0, 1] or [0, 255].
        boxes: (N, 4) float32, xyxy in pixels of the image.
        sem_seg: (H, W) uint8, the label of each pixel.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise TypeError(f"An image is an array (H, W) or (H, W, C), not {getattr(image, 'shape', type(image))}")
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise TypeError(f"An image is of dtype uint8 or float, not {image.dtype}")
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform all that is there, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: list[Augmentation | Transform]) -> TransformList:
        """Apply `AugmentationList(augmentations)` and return what it chose."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: list[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[np.ndarray | AugInput, TransformList]:
    """Augment an image, or an `AugInput` in place; returns the result and the transforms."""
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)
