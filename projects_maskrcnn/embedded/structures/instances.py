"""The instances of one image."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch


class Deferred(ABC):
    """A field that is made when it is first read: what takes much memory, and which many never look at.

    Subclasses have a length, and where `Instances` need them `__getitem__`, `to` and a static `cat`.
    """

    @abstractmethod
    def make(self) -> Any:
        """The field."""

    @abstractmethod
    def __len__(self) -> int: ...


class Instances:
    """N instances of an image, each attribute a field of length N.

    A field is anything with a length that can be indexed: a tensor, `Boxes`, masks, a list. Fields are read
    and written as attributes (``instances.gt_boxes``); names that start with an underscore are no fields.
    Indexing the instances indexes every field.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """
        Args:
            image_size: height, width of the image, in pixels.
            kwargs: fields by name.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height, width."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # which a copy or pickle lacks while it is being built
        if name not in fields:
            raise AttributeError(f"no field '{name}' in these Instances, which have: {', '.join(fields)}")
        return self.get(name)

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            ValueError: its length is not that of the other fields.
        """
        length = len(value)
        if self._fields and length != len(self):
            raise ValueError(f"field '{name}' has length {length}, but there are {len(self)} instances")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Forget a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """A field, which is made now if it was deferred."""
        value = self._fields[name]
        if isinstance(value, Deferred):
            value = self._fields[name] = value.make()
        return value

    def get_fields(self) -> dict[str, Any]:
        """The fields by name: the dict itself, not a copy."""
        for name in self._fields:
            self.get(name)
        return self._fields

    def deferred(self, name: str) -> Deferred | None:
        """The field as long as nobody has read it, if it is a deferred one."""
        value = self._fields.get(name)
        return value if isinstance(value, Deferred) else None

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """The same instances, after the `to` of each field that has it."""
        fields = self._fields.items()
        return Instances(self._image_size, **{k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in fields})

    def __getitem__(self, item: int | slice | torch.Tensor) -> "Instances":
        """The instances at an int (one instance), slice, integer or bool tensor."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"instance {item} of {len(self)}")
            item = slice(item, None, len(self))  # of length one, so that every field stays a field
        return Instances(self._image_size, **{name: value[item] for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length")

    __iter__ = None  # or Python would iterate by __getitem__

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """The instances of one or more `Instances` of one image size, with the fields of the first.

        Raises:
            ValueError: there is none, sizes differ, one lacks a field, or a field's type has no `cat`.
        """
        if not instance_lists:
            raise ValueError("cat takes one or more Instances")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        result = Instances(first.image_size)
        for each in instance_lists:
            missing = first._fields.keys() - each._fields.keys()
            if missing or tuple(each.image_size) != tuple(first.image_size):
                raise ValueError(f"cannot join {each} to {first}: another image size, or no {sorted(missing)}")
        for name in first._fields:
            values = [each._fields[name] for each in instance_lists]
            if not all(isinstance(value, Deferred) for value in values):
                values = [each.get(name) for each in instance_lists]
            result.set(name, _cat(name, values))
        return result

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        count = len(self) if self._fields else 0
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _cat(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(first, "cat"):
        return type(first).cat(values)
    raise ValueError(f"field '{name}' is a {type(first).__name__}, which has no cat")
