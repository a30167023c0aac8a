"""ComfyUI's door: hands over the extension, nothing else."""


async def comfy_entrypoint():
    """The extension with the pack's nodes, imported only when ComfyUI asks: importing the pack costs nothing."""
    from .nodes import extension

    return extension()
