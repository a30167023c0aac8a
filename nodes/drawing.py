"""The pictures of Feature Map and Concept Plot. matplotlib is imported where one is drawn."""

import numpy
import torch

from ..saeuron import ConceptTable

FIRES, SELDOM = 0.05, 0.01
"""A place fires from this share of the scale's end on; a row hardly fires where less than that share of places do."""
HEIGHT = 2.2
"""Inches a map is high."""


def draw_maps(seen: dict[str, dict[int, torch.Tensor]], image: torch.Tensor, ranges: int, picture: int) -> torch.Tensor:
    """One row a name, one column a range of timesteps: the picture with its heat map, ``[1, H, W, 3]``.

    All share one scale, which the bar beside them shows.
    """
    steps = sorted(next(iter(seen.values())), reverse=True)
    parts = [part for part in numpy.array_split(steps, min(ranges, len(steps))) if len(part)]
    heat = {
        n: torch.stack([torch.stack([m[int(t)][picture] for t in p]).mean(0) for p in parts]) for n, m in seen.items()
    }
    top = max(float(values.max()) for values in heat.values()) or 1.0
    width = HEIGHT * image.shape[1] / image.shape[0]
    figure, axes = _figure(
        len(seen), len(parts), (width * len(parts) + 1.2, (HEIGHT + 0.45) * len(seen)), "constrained"
    )
    for row, (name, values) in zip(axes, heat.items(), strict=True):
        seldom = float((values > FIRES * top).float().mean()) < SELDOM
        for axis, part, value in zip(row, parts, values, strict=True):
            place = (0, image.shape[1], image.shape[0], 0)
            axis.imshow(image.cpu().numpy().clip(0, 1), extent=place)
            drawn = axis.imshow(value.numpy(), extent=place, cmap="inferno", alpha=0.6, vmin=0, vmax=top)
            axis.set_title(f"{name}{', hardly fires' * seldom}\nt {part[0]}–{part[-1]}", fontsize=9, parse_math=False)
            axis.axis("off")
    figure.colorbar(drawn, ax=axes, label="activation", shrink=0.8)
    return _image(figure)


def draw_curves(seen: dict[str, dict[int, torch.Tensor]], picture: int) -> torch.Tensor:
    """Mean activation over the picture against the timestep, one line a name."""
    figure, axes = _figure(1, 1)
    for name, maps in seen.items():
        steps = sorted(maps, reverse=True)
        axes[0][0].plot(steps, [float(maps[t][picture].mean()) for t in steps], label=name)
    return _image(_labelled(figure, axes[0][0], "mean activation"))


def draw_scores(table: ConceptTable, concept: str, count: int) -> torch.Tensor:
    """Scores of the concept's ``count`` latents of highest mean score, against the timestep."""
    scores = table.scores(concept)
    figure, axes = _figure(1, 1)
    for latent in scores.mean(0).topk(min(count, scores.shape[1])).indices.tolist():
        axes[0][0].plot(table.timesteps.tolist(), scores[:, latent].tolist(), label=f"latent {latent}")
    axes[0][0].set_title(concept, parse_math=False)
    return _image(_labelled(figure, axes[0][0], "score"))


def _figure(rows: int, columns: int, size: tuple[float, float] = (6, 3.5), layout: str = "tight"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _labelled(figure, axis, quantity: str):
    axis.set_xlabel("timestep")
    axis.set_ylabel(quantity)
    axis.invert_xaxis()
    for text in axis.legend(fontsize=8).get_texts():
        text.set_parse_math(False)  # names are names, with whatever signs in them
    return figure


def _image(figure) -> torch.Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(numpy.asarray(canvas.buffer_rgba())[None, :, :, :3].astype("float32") / 255)
