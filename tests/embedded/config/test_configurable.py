import inspect

import pytest

from projects_maskrcnn.embedded.config import CfgNode, configurable

CFG = CfgNode({"A": 1, "B": 2})


class Plain:
    @configurable
    def __init__(self, a, b=5, *, c=6):
        """Doc."""
        self.got = (a, b, c)

    @classmethod
    def from_config(cls, cfg):
        return {"a": cfg.A, "b": cfg.B}


class Taking(Plain):
    @configurable
    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = shape

    @classmethod
    def from_config(cls, cfg, shape, c=7):
        return {"shape": shape * 2, "c": c, **super().from_config(cfg)}


class Forwarding(Plain):
    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"a": args, "b": kwargs}


@configurable(from_config=lambda cfg, c=8: {"a": cfg.A, "c": c})
def function(a, b=5, c=6):
    return a, b, c


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((3,), {}, (3, 5, 6)),
        ((3, 4), {"c": 0}, (3, 4, 0)),
        ((), {"a": 3, "b": 4}, (3, 4, 6)),
        ((CFG,), {}, (1, 2, 6)),
        ((), {"cfg": CFG}, (1, 2, 6)),
        ((CFG,), {"b": 9, "c": 10}, (1, 9, 10)),
    ],
)
def test_explicit_arguments_or_a_config(args, kwargs, expected):
    assert Plain(*args, **kwargs).got == expected


def test_from_config_takes_the_arguments_that_it_names():
    made = Taking(CFG, 10, b=9)
    assert made.shape == 20 and made.got == (1, 9, 7)
    assert Taking(CFG, shape=10, c=11).got == (1, 2, 11)
    assert Taking(10, a=3).got == (3, 5, 6)


def test_from_config_that_takes_everything():
    assert Forwarding(CFG, 1, 2, x=3).got == ((1, 2), {"x": 3}, 6)


def test_function():
    assert function(1) == (1, 5, 6)
    assert function(CFG, b=4) == (1, 4, 8)
    assert function(CFG, c=4) == (1, 5, 4)
    assert function.from_config(CFG) == {"a": 1, "c": 8}


def test_subclass_without_its_own_init_uses_its_own_from_config():
    class Child(Plain):
        @classmethod
        def from_config(cls, cfg):
            return {"a": "child"}

    assert Child(CFG).got == ("child", 5, 6)


def test_signature_and_documentation_stay():
    assert list(inspect.signature(Plain).parameters) == ["a", "b", "c"]
    assert Plain.__init__.__doc__ == "Doc."


def test_written_with_parentheses():
    class Parentheses:
        @configurable()
        def __init__(self, a):
            self.a = a

        @classmethod
        def from_config(cls, cfg):
            return {"a": cfg.B}

    assert Parentheses(CFG).a == 2


def test_misuse_is_named():
    class Without:
        @configurable
        def __init__(self, a):
            pass

    class Instance(Without):
        def from_config(self, cfg):
            return {}

    class First(Without):
        @classmethod
        def from_config(cls, config):
            return {}

    for cls, message in ((Without, "Without"), (Instance, "classmethod"), (First, "must be cfg")):
        with pytest.raises(TypeError, match=message):
            cls(CFG)
    with pytest.raises(TypeError, match="__init__"):
        configurable(lambda a: a)
