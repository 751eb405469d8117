"""Registries: names, as configs write them, to classes and functions."""

from typing import Any

from fvcore.common.registry import Registry as _Registry

# Detectron2's own heads and backbones, which the embedded framework leaves to the plugin's.
_COUNTERPARTS = {
    "build_resnet_backbone": "build_maskrcnn_resnet_backbone",
    "build_resnet_fpn_backbone": "build_maskrcnn_resnet_fpn_backbone",
    "StandardROIHeads": "MaskRCNNROIHeads",
    "Res5ROIHeads": "MaskRCNNC4ROIHeads",
    "FastRCNNConvFCHead": "MaskRCNNBoxHead",
    "MaskRCNNConvUpsampleHead": "MaskRCNNMaskHead",
    "KRCNNConvDeconvUpsampleHead": "MaskRCNNKeypointHead",
}


class Registry(_Registry):
    """fvcore's `Registry`, whose error for an unknown name says which names there are."""

    def get(self, name: str) -> Any:
        """The object registered as `name`.

        Raises:
            KeyError: there is none; the message lists the names, and this project's counterpart of `name`.
        """
        if name in self:
            return super().get(name)
        names = ", ".join(sorted(self._obj_map)) or "nothing"
        message = f"no '{name}' in the {self._name} registry, which has: {names}."
        if name in _COUNTERPARTS:
            message += f" It is part of Detectron2; use this project's '{_COUNTERPARTS[name]}' in its place."
        elif "maskrcnn" in name.lower():
            message += " Where Detectron2 is installed, this project's parts are registered with it. To have them "
            message += "here, set the environment variable MASKRCNN_FRAMEWORK=embedded."
        else:
            message += " A name of your own is known once the module that registers it has been imported."
        raise KeyError(message)
