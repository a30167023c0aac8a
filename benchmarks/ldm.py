"""The names and shapes of Stable Diffusion's weights as its authors write them (LDM), for SD 1.5, SD 2.1 and SDXL."""

from collections.abc import Iterator
from dataclasses import dataclass

VAE, UNET = "first_stage_model.", "model.diffusion_model."
VOCABULARY, POSITIONS = 49408, 77
TIME_IDS = 6 * 256  # SDXL is also told sizes and crops, each as an embedding

Named = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Size:
    """How wide and deep a model is. ``unet`` and ``vae`` are the widths of their first level, multiples of 32.

    ``depths`` are the transformer blocks of each level of the UNet; ``linear`` says how tokens enter them. ``clip`` and
    ``open_clip`` are width and layers of the text encoders that go by those names; SDXL has both.
    """

    unet: int = 320
    vae: int = 128
    depths: tuple[int, ...] = (1, 1, 1, 0)
    linear: bool = False
    clip: tuple[int, int] | None = None
    open_clip: tuple[int, int] | None = None

    @property
    def is_xl(self) -> bool:
        return self.clip is not None and self.open_clip is not None


SD15 = Size(clip=(768, 12))
SD21 = Size(linear=True, open_clip=(1024, 24))
SDXL = Size(depths=(0, 2, 10), linear=True, clip=(768, 12), open_clip=(1280, 32))


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its name in the file."""
    clip, open_clip = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
    if size.is_xl:
        clip, open_clip = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    named = [*_unet(size), *_vae(size.vae)]
    named += [*_clip(clip, *size.clip)] if size.clip else []
    named += [*_open_clip(open_clip, *size.open_clip)] if size.open_clip else []
    return dict(named)


def _layer(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _residual(name: str, before: int, after: int, time: int) -> Named:
    yield from _layer(f"{name}.in_layers.0", before)
    yield from _layer(f"{name}.in_layers.2", after, before, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", after, time)
    yield from _layer(f"{name}.out_layers.0", after)
    yield from _layer(f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        yield from _layer(f"{name}.skip_connection", after, before, 1, 1)


def _transformer(name: str, width: int, context: int, depth: int, linear: bool) -> Named:
    kernel = () if linear else (1, 1)
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, *kernel)
    for number in range(depth):
        yield from _attention_block(f"{name}.transformer_blocks.{number}", width, context)
    yield from _layer(f"{name}.proj_out", width, width, *kernel)


def _attention_block(block: str, width: int, context: int) -> Named:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, source)
        yield f"{block}.{attention}.to_v.weight", (width, source)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _layer(f"{block}.{norm}", width)


def _unet(size: Size) -> Named:
    width, last = size.unet, len(size.depths) - 1
    levels, time = [width * factor for factor in (1, 2, 4, 4)[: last + 1]], 4 * width
    context = (size.clip[0] if size.clip else 0) + (size.open_clip[0] if size.open_clip else 0)

    def level_parts(name: str, level: int, before: int) -> Named:
        yield from _residual(f"{name}.0", before, levels[level], time)
        if size.depths[level]:
            yield from _transformer(f"{name}.1", levels[level], context, size.depths[level], size.linear)

    yield from _layer(f"{UNET}time_embed.0", time, width)
    yield from _layer(f"{UNET}time_embed.2", time, time)
    if size.is_xl:
        yield from _layer(f"{UNET}label_emb.0.0", time, size.open_clip[0] + TIME_IDS)
        yield from _layer(f"{UNET}label_emb.0.2", time, time)
    yield from _layer(f"{UNET}input_blocks.0.0", width, 4, 3, 3)
    skips, now, number = [width], width, 1
    for level, after in enumerate(levels):
        for _ in range(2):
            yield from level_parts(f"{UNET}input_blocks.{number}", level, now)
            skips.append(after)
            now, number = after, number + 1
        if level < last:
            yield from _layer(f"{UNET}input_blocks.{number}.0.op", after, after, 3, 3)
            skips.append(after)
            number += 1
    yield from _residual(f"{UNET}middle_block.0", now, now, time)
    yield from _transformer(f"{UNET}middle_block.1", now, context, size.depths[last] or 1, size.linear)
    yield from _residual(f"{UNET}middle_block.2", now, now, time)
    for number in range(3 * len(levels)):
        level = last - number // 3
        yield from level_parts(f"{UNET}output_blocks.{number}", level, now + skips.pop())
        now = levels[level]
        if level and number % 3 == 2:
            place = 2 if size.depths[level] else 1
            yield from _layer(f"{UNET}output_blocks.{number}.{place}.conv", now, now, 3, 3)
    yield from _layer(f"{UNET}out.0", now)
    yield from _layer(f"{UNET}out.2", 4, now, 3, 3)


def _vae(width: int) -> Named:
    levels = [width, 2 * width, 4 * width, 4 * width]
    yield from _layer(f"{VAE}encoder.conv_in", width, 3, 3, 3)
    now = width
    for level, after in enumerate(levels):
        for block in range(2):
            yield from _vae_block(f"{VAE}encoder.down.{level}.block.{block}", now, after)
            now = after
        if level < 3:
            yield from _layer(f"{VAE}encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from _vae_ends("encoder", now, now, 8)
    yield from _layer(f"{VAE}quant_conv", 8, 8, 1, 1)
    yield from _layer(f"{VAE}post_quant_conv", 4, 4, 1, 1)
    yield from _layer(f"{VAE}decoder.conv_in", now, 4, 3, 3)
    for level in (3, 2, 1, 0):
        after = levels[level]
        for block in range(3):
            yield from _vae_block(f"{VAE}decoder.up.{level}.block.{block}", now, after)
            now = after
        if level:
            yield from _layer(f"{VAE}decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from _vae_ends("decoder", levels[3], now, 3)


def _vae_block(name: str, before: int, after: int) -> Named:
    yield from _layer(f"{name}.norm1", before)
    yield from _layer(f"{name}.conv1", after, before, 3, 3)
    yield from _layer(f"{name}.norm2", after)
    yield from _layer(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from _layer(f"{name}.nin_shortcut", after, before, 1, 1)


def _vae_ends(half: str, middle: int, last: int, out: int) -> Named:
    yield from _vae_block(f"{VAE}{half}.mid.block_1", middle, middle)
    yield from _layer(f"{VAE}{half}.mid.attn_1.norm", middle)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{VAE}{half}.mid.attn_1.{part}", middle, middle, 1, 1)
    yield from _vae_block(f"{VAE}{half}.mid.block_2", middle, middle)
    yield from _layer(f"{VAE}{half}.norm_out", last)
    yield from _layer(f"{VAE}{half}.conv_out", out, last, 3, 3)


def _clip(prefix: str, width: int, layers: int) -> Named:
    yield f"{prefix}embeddings.token_embedding.weight", (VOCABULARY, width)
    yield f"{prefix}embeddings.position_embedding.weight", (POSITIONS, width)
    for layer in range(layers):
        name = f"{prefix}encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{part}", width, width)
        yield from _after_attention(name, width, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
    yield from _layer(f"{prefix}final_layer_norm", width)


def _after_attention(name: str, width: int, *parts: str) -> Named:
    shapes = (width,), (4 * width, width), (width, 4 * width), (width,)
    for part, shape in zip(parts, shapes, strict=True):
        yield from _layer(f"{name}.{part}", *shape)


def _open_clip(prefix: str, width: int, layers: int) -> Named:
    yield f"{prefix}token_embedding.weight", (VOCABULARY, width)
    yield f"{prefix}positional_embedding", (POSITIONS, width)
    for layer in range(layers):
        name = f"{prefix}transformer.resblocks.{layer}"
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{name}.attn.out_proj", width, width)
        yield from _after_attention(name, width, "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    yield from _layer(f"{prefix}ln_final", width)
    yield f"{prefix}text_projection", (width, width)
