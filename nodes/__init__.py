"""The graph: thin ComfyUI nodes (V3 schema)."""


def extension():
    """The ComfyExtension that lists the nodes; ComfyUI is imported here, so that importing this module needs none."""
    from comfy_api.latest import ComfyExtension, io

    class SAeUronExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            from . import routes
            from .atlas_card import AtlasCard
            from .atlas_recorder import AtlasRecorder
            from .concepts import ConceptSelector
            from .feature_maps import ConceptPlot, FeatureMap, FeatureProbe
            from .host import files, workflow
            from .learn import LearnConcept
            from .loader import SaeLoader
            from .patches import FeatureAblatePatch, FeatureSteerPatch
            from .recorder import ActivationRecorder
            from .save import SaveSae
            from .tinycanvas import TinyCanvas

            # Here and not in `on_load`, which ComfyUI 0.8 does not call.
            files.register()
            routes.register()
            workflow.register()
            return [
                SaeLoader,
                LearnConcept,
                SaveSae,
                ConceptSelector,
                FeatureAblatePatch,
                FeatureSteerPatch,
                ActivationRecorder,
                FeatureProbe,
                FeatureMap,
                AtlasRecorder,
                AtlasCard,
                ConceptPlot,
                TinyCanvas,
            ]

    return SAeUronExtension()
