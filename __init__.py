"""ComfyUI's door: hands over the extension, nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with the pack's nodes, imported only when ComfyUI asks: importing the pack costs nothing."""
    from .nodes import extension

    return extension()
