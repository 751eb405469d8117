import pytest

from projects_maskrcnn.embedded.utils.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("ROI_HEADS")

    @registry.register()
    class First:
        pass

    class Second:
        pass

    registry.register(Second)
    return registry


def test_names_to_objects(registry):
    assert [registry.get(name).__name__ for name in ("First", "Second")] == ["First", "Second"]
    assert "First" in registry and "Third" not in registry
    with pytest.raises(AssertionError, match="First"):
        registry.register(type("First", (), {}))


def test_unknown_name_lists_the_names(registry):
    with pytest.raises(KeyError, match="no 'Third' in the ROI_HEADS registry, which has: First, Second"):
        registry.get("Third")


def test_our_own_names_may_be_registered_with_detectron2(registry):
    with pytest.raises(KeyError, match="MASKRCNN_FRAMEWORK=embedded"):
        registry.get("MaskRCNNROIHeads")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("StandardROIHeads", "MaskRCNNROIHeads"),
        ("Res5ROIHeads", "MaskRCNNC4ROIHeads"),
        ("FastRCNNConvFCHead", "MaskRCNNBoxHead"),
        ("MaskRCNNConvUpsampleHead", "MaskRCNNMaskHead"),
        ("KRCNNConvDeconvUpsampleHead", "MaskRCNNKeypointHead"),
        ("build_resnet_backbone", "build_maskrcnn_resnet_backbone"),
        ("build_resnet_fpn_backbone", "build_maskrcnn_resnet_fpn_backbone"),
    ],
)
def test_detectron2s_own_names_lead_to_ours(registry, theirs, ours):
    with pytest.raises(KeyError, match=f"Detectron2; use this project's '{ours}'"):
        registry.get(theirs)
