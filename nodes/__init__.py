"""The graph: thin ComfyUI nodes (V3 schema)."""


def extension():
    """The ComfyExtension that lists the nodes; ComfyUI is imported here, so that importing this module needs none."""
    from comfy_api.latest import ComfyExtension, io

    class SAeUronExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return []

    return SAeUronExtension()
