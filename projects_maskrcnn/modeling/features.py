"""Feature maps by their names."""

from collections.abc import Sequence

from ..framework import ShapeSpec


def shapes_of(names: Sequence[str], shapes: dict[str, ShapeSpec], key: str) -> list[ShapeSpec]:
    """The shapes of the feature maps that the config's `key` names.

    Raises:
        ValueError: it names none, or one that is not there.
    """
    if not names or not set(names) <= shapes.keys():
        raise ValueError(f"{key} is {list(names)}; choose from {', '.join(shapes)}")
    return [shapes[name] for name in names]
