"""Feature maps that a config names and the backbone does not give."""

import pytest

from projects_maskrcnn.framework import FRAMEWORK, build_model


@pytest.mark.parametrize("names", [[], ["p2", "p8"], ["res2"]])
@pytest.mark.parametrize(
    "key",
    [
        "MODEL.FPN.IN_FEATURES",
        "MODEL.ROI_HEADS.IN_FEATURES",
        pytest.param(
            "MODEL.RPN.IN_FEATURES",
            marks=pytest.mark.skipif(FRAMEWORK == "detectron2", reason="the network for proposals is Detectron2's"),
        ),
    ],
)
def test_unknown_features_are_named(key, names, config):
    known = "res2, res3, res4, res5" if "FPN" in key else "p2, p3, p4, p5, p6"
    names = ["res3", "p3"] if "FPN" in key and names else names
    with pytest.raises(ValueError) as error:
        build_model(config("fpn", key, names))
    assert str(error.value) == f"{key} is {names}; choose from {known}"
