"""The config node and `configurable`, which lets classes and functions be called with one."""

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _CfgNode

from ..utils.file_io import PathManager

VERSION = 2  # the only version of the config format that is read


class CfgNode(_CfgNode):
    """A config: a dict of keys and nested nodes, read as attributes. Stands for Detectron2's `CfgNode`.

    It differs in that files are read as safe YAML only, and in errors that name the key, the file that sets
    it, and the known keys nearest to it.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file, after the file or list of files that its `_BASE_` names.

        A `_BASE_` is relative to the file that names it, or starts with ``/``, ``~`` or a URL's scheme.

        Args:
            cfg_filename: a path or URL.
            allow_unsafe: accepted for Detectron2's sake; YAML that would run Python is refused in any case.

        Raises:
            FileNotFoundError: the file or one of its bases does not exist.
            KeyError: a key that this config does not have.
            ValueError: a value of another type than the key's default, another VERSION, or no plain YAML.
        """
        for source, content in _read_with_bases(os.fspath(cfg_filename)):
            version = content.get("VERSION", VERSION)
            if version != VERSION:
                raise ValueError(
                    f"{source}: VERSION {version} of the config format is not supported, only {VERSION}. "
                    "Rename its keys to those of version 2, as Detectron2's `upgrade_config` does"
                )
            try:
                other = type(self)(content)
                self.merge_from_other_cfg(other)
            except (AssertionError, ValueError) as error:
                raise ValueError(f"{source}: {error}") from error
            except KeyError as error:
                self._raise_unknown_key(_full_names(other), source, error)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Merge ``[key, value, key, value, ...]``; a value that is a string is read as a Python literal.

        Raises:
            KeyError: a key that this config does not have.
            ValueError: a value of another type than the key's default.
        """
        try:
            super().merge_from_list(cfg_list)
        except (AssertionError, TypeError) as error:  # a TypeError where a key goes on below a value
            self._raise_unknown_key(cfg_list[0::2], "overrides", error)

    def _raise_unknown_key(self, keys: Iterable[str], source: str, error: Exception) -> NoReturn:
        """Name the first of `keys` that is unknown and the known ones like it; without one, raise `error`."""
        known = list(_full_names(self))
        for key in keys:
            if key in known or self.key_is_deprecated(key) or self.key_is_renamed(key):
                continue
            same_leaf = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
            near = dict.fromkeys(difflib.get_close_matches(key, known) + same_leaf[:3])
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise KeyError(
                f"{source}: unknown config key {key}.{hint} "
                "A project's own keys exist once its add_..._config(cfg) has been called"
            ) from error
        raise error


def _full_names(node: _CfgNode, prefix: str = "") -> Iterator[str]:
    """The dotted name of every node and leaf below `node`, in order."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, _CfgNode):
            yield from _full_names(value, f"{prefix}{key}.")


def _read_with_bases(filename: str, children: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each file's name and own content: the bases of `filename` first, the most basic before all, it last."""
    name = os.path.normpath(filename)
    if name in children:
        raise ValueError(f"{' <- '.join((*children, name))}: a config file cannot be its own {BASE_KEY}")
    try:
        with CfgNode._open_cfg(filename) as file:
            content = yaml.safe_load(file) or {}
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ValueError(f"{filename} is no config file, a YAML text in UTF-8: {error}") from error
    except FileNotFoundError as error:
        of = f", the {BASE_KEY} of '{children[-1]}'," if children else ""
        raise FileNotFoundError(f"config file '{filename}'{of} does not exist") from error
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{filename}: YAML tags that run Python are never read, write the value out: {error}"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{filename} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{filename}: expected keys and values, not a {type(content).__name__}")
    if not_names := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"{filename}: the key {not_names[0]!r} is not a name")

    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{filename}: {BASE_KEY} is {bases!r}, not a file or a list of files")
    for base in bases:
        base = os.path.expanduser(base)
        if "://" not in base:
            base = os.path.join(os.path.dirname(filename), base)  # an absolute `base` is left as it is
        yield from _read_with_bases(base, (*children, name))
    yield filename, content


def get_cfg() -> CfgNode:
    """A copy of the default config; `defaults.py` says what each key does."""
    from .defaults import _C  # which is made of CfgNode

    return _C.clone()


global_cfg = CfgNode()


def set_global_cfg(cfg: CfgNode) -> None:
    """Let `global_cfg`, which any code can import, hold the keys of `cfg`."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Let an `__init__` or a function be called with explicit arguments or with a config.

    `from_config` turns a config into a dict of explicit arguments. A call whose first argument (or keyword
    `cfg`) is a config passes through it; further keywords go to `from_config` where it takes them, and
    otherwise override what it returns. Stands for Detectron2's `configurable`::

        class Head:
            @configurable
            def __init__(self, width, depth=2): ...

            @classmethod
            def from_config(cls, cfg, depth=2):
                return {"width": cfg.WIDTH, "depth": depth}

        Head(width=8)
        Head(cfg)
        Head(cfg, width=16)

        @configurable(from_config=lambda cfg: {"width": cfg.WIDTH})
        def build_head(width): ...
    """
    if init_func is None:
        return functools.partial(_configurable_function, from_config) if from_config else configurable
    if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
        raise TypeError("use @configurable on an __init__, or @configurable(from_config=...) on a function")

    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if _has_config(args, kwargs):
            from_config = getattr(type(self), "from_config", None)
            if not inspect.ismethod(from_config):
                raise TypeError(f"{type(self).__name__} is @configurable and needs a classmethod from_config(cls, cfg)")
            args, kwargs = (), _explicit_arguments(from_config, args, kwargs)
        init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable, function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _has_config(args, kwargs):
            args, kwargs = (), _explicit_arguments(from_config, args, kwargs)
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _has_config(args: tuple, kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode)


def _explicit_arguments(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `from_config` makes of a call with a config."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"the first argument of {from_config.__qualname__} must be cfg")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return from_config(*args, **kwargs)
    taken = {name: value for name, value in kwargs.items() if name in parameters}
    others = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**from_config(*args, **taken), **others}
