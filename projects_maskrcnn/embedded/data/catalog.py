"""The two global catalogs: how a dataset of a given name is loaded, and what is known about it."""

import builtins
import difflib
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any


class _DatasetCatalog(UserDict):
    """Maps the name of a dataset to the function that loads it. Stands for Detectron2's `DatasetCatalog`.

    The function takes no argument and gives the same list of dataset dicts (one an image) each time.
    """

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Add a dataset.

        Raises:
            TypeError: `func` is not callable.
            AssertionError: the name is taken (an `AssertionError`, since that is what users of Detectron2
                catch).
        """
        if not callable(func):
            raise TypeError(f"Dataset {name!r}: register a function that loads it, not a {type(func).__name__}")
        if name in self:
            raise AssertionError(
                f"Dataset {name!r} is already registered. Choose another name, or first call "
                f"DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r})"
            )
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load the dataset.

        Raises:
            KeyError: nothing is registered under that name; the message lists the nearest names.
        """
        if name not in self:
            near = difflib.get_close_matches(name, self.keys(), n=5, cutoff=0.5) or sorted(self.keys())
            raise KeyError(
                f"Dataset {name!r} is not registered. Did you mean one of: {', '.join(near)}? "
                "Register your own with register_coco_instances or DatasetCatalog.register, "
                "before it is named in DATASETS.TRAIN or DATASETS.TEST"
            )
        return self[name]()

    def list(self) -> list[str]:
        """The registered names."""
        return builtins.list(self.keys())

    def remove(self, name: str) -> None:
        """Forget the dataset."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"


class Metadata(types.SimpleNamespace):
    """What is known about a dataset (`thing_classes`, `json_file`, `evaluator_type`, ...) as attributes.

    An attribute once set keeps its value: setting it to another one is an error, so that two parts of a
    program never disagree about the classes of a dataset.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(sorted(set(self.__dict__) - {"name"})) or "nothing"
        raise AttributeError(f"Metadata of dataset {self.name!r} has no {key!r}; it has: {known}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"Metadata {key!r} of dataset {self.name!r} is already set, to another value: "
                f"{self.__dict__[key]} != {value}. Use another dataset name, or first call "
                f"MetadataCatalog.remove({self.name!r})"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of everything known."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` where it is not set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Maps the name of a dataset to its one `Metadata`. Stands for Detectron2's `MetadataCatalog`."""

    def get(self, name: str) -> Metadata:
        """The metadata of that name, created empty at first use."""
        if not name:
            raise ValueError("MetadataCatalog.get: the name of a dataset is empty")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """The names that have metadata."""
        return builtins.list(self.keys())

    def remove(self, name: str) -> None:
        """Forget the metadata."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
