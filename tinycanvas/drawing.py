"""The drawings: ten objects in nine styles, rendered from signed distances at 32 × 32 RGB.

Place, size, tilt and colour vary from drawing to drawing; what makes a concept a concept does not. Two pairs of
objects are near neighbours on purpose: circle and ring, square and diamond.
"""

import math

import torch

SIZE = 32
OBJECTS = ("circle", "ring", "square", "diamond", "triangle", "star", "cross", "heart", "moon", "arrow")
STYLES = ("plain", "neon", "candy", "sketch", "blueprint", "sepia", "mosaic", "sunset", "watercolor")


def _star_points(spikes: int = 5, inner: float = 0.45) -> list[tuple[float, float]]:
    radii = [1.0, inner] * spikes
    angles = [math.pi * i / spikes - math.pi / 2 for i in range(2 * spikes)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart_points(n: int = 28) -> list[tuple[float, float]]:
    points = []
    for i in range(n):
        a = 2 * math.pi * i / n
        x = 16 * math.sin(a) ** 3
        y = -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))
        points.append((x / 16.5, y / 16.5 - 0.08))
    return points


_CROSS = [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
_POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "diamond": [(0, -1.05), (1.05, 0), (0, 1.05), (-1.05, 0)],
    "triangle": [(0, -0.95), (1, 0.8), (-1, 0.8)],
    "star": _star_points(),
    "cross": _CROSS + [(-x, -y) for x, y in _CROSS],
    "heart": _heart_points(),
    "arrow": [(1.05, 0), (0.15, -0.9), (0.15, -0.32), (-1, -0.32), (-1, 0.32), (0.15, 0.32), (0.15, 0.9)],
}


def _polygon_distance(x: torch.Tensor, y: torch.Tensor, points: list[tuple[float, float]]) -> torch.Tensor:
    """Signed distance of points ``x, y`` to a polygon, negative inside (even-odd rule)."""
    nearest = torch.full_like(x, 1e9)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:
            crosses = (y < max(ay, by)) & (y >= min(ay, by)) & (x < ax + (y - ay) / (by - ay) * ex)
            inside ^= crosses
    distance = nearest.sqrt()
    return torch.where(inside, -distance, distance)


def _distance(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    radius = torch.hypot(x, y)
    if name == "circle":
        return radius - 0.95
    if name == "ring":
        return (radius - 0.74).abs() - 0.24
    if name == "moon":
        return torch.maximum(radius - 0.98, 0.82 - torch.hypot(x - 0.5, y))
    return _polygon_distance(x, y, _POLYGONS[name])


def _hue(h: torch.Tensor, saturation: float, value: float) -> torch.Tensor:
    """HSV to RGB for hues ``[B]`` in turns; returns ``[B, 3, 1, 1]``."""
    k = (h[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    rgb = value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)
    return rgb[:, :, None, None]


def _rgb(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, :, None, None]


def _paint(style: str, d: torch.Tensor, u: torch.Tensor, v: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """Colours ``[B, 3, H, W]`` in 0..1 from distances ``d`` (pixels), pixel places ``u, v`` and hues ``[B]``."""

    def blend(ground, ink, softness=1.0):
        cover = (0.5 - d / softness).clamp(0, 1)
        return ground * (1 - cover) + ink * cover

    if style == "plain":
        return blend(_rgb(0.93, 0.93, 0.93), _hue(hue, 0.85, 0.8))
    if style == "neon":
        glow = torch.exp(-d.abs() / 1.6) + 0.35 * (d < 0)
        return (_rgb(0.04, 0.02, 0.09) + _hue(hue, 0.75, 1.0) * glow).clamp(0, 1)
    if style == "candy":
        stripe = ((u + v) % 6 < 3).float()
        ink = stripe * _hue(hue, 0.8, 0.95) + (1 - stripe) * _rgb(1.0, 1.0, 1.0)
        return blend(_rgb(1.0, 0.72, 0.82), ink)
    if style == "sketch":
        hatch = 0.62 + 0.16 * ((u - v) % 4 < 2).float()
        edge = 0.55 * torch.exp(-((d / 0.9) ** 2))
        return (blend(_rgb(0.97, 0.97, 0.95), hatch) - edge).clamp(0, 1)
    if style == "blueprint":
        grid = 0.13 * ((u % 8 < 1) | (v % 8 < 1)).float()
        return blend(_rgb(0.08, 0.2, 0.55) + grid, _rgb(0.85, 0.92, 1.0))
    if style == "sepia":
        vignette = 1 - 0.35 * ((u / SIZE - 0.5) ** 2 + (v / SIZE - 0.5) ** 2) * 2
        return blend(_rgb(0.86, 0.72, 0.5), _rgb(0.36, 0.2, 0.08), 1.5) * vignette
    if style == "mosaic":
        grout = ((u % 4 < 1) | (v % 4 < 1)).float()
        tiles = blend(_hue((hue + 0.5) % 1, 0.45, 0.75), _hue(hue, 0.9, 0.9))
        return tiles * (1 - 0.65 * grout)
    if style == "sunset":
        fall = v / (SIZE - 1)
        sky = _rgb(0.36, 0.12, 0.5) * (1 - fall) + _rgb(1.0, 0.6, 0.15) * fall
        return blend(sky, _rgb(0.05, 0.03, 0.06))
    if style == "watercolor":
        return blend(_rgb(0.97, 0.96, 0.9), _hue(hue, 0.42, 0.85), 5.0)
    raise ValueError(f"unknown style {style!r}; the styles are {', '.join(STYLES)}")


def random_labels(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Object and style indices ``[count]`` each, every pair equally likely."""
    return (
        torch.randint(len(OBJECTS), (count,), generator=generator),
        torch.randint(len(STYLES), (count,), generator=generator),
    )


def draw(objects: torch.Tensor, styles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one picture for each pair of labels.

    ``objects`` and ``styles`` are ``[B]`` indices into OBJECTS and STYLES; returns ``[B, 3, 32, 32]`` in −1..1. The
    same generator state gives the same drawings.
    """
    n = len(objects)
    spread = torch.rand(5, n, generator=generator)
    scale = SIZE / 2 * (0.62 + 0.18 * spread[0])
    tilt = (spread[1] - 0.5) * math.radians(20)
    slack = (SIZE / 2 - scale).clamp(min=0) * 0.35
    cx = SIZE / 2 + (spread[2] * 2 - 1) * slack
    cy = SIZE / 2 + (spread[3] * 2 - 1) * slack
    pixels = torch.arange(SIZE) + 0.5
    v, u = torch.meshgrid(pixels, pixels, indexing="ij")
    x = (u[None] - cx[:, None, None]) / scale[:, None, None]
    y = (v[None] - cy[:, None, None]) / scale[:, None, None]
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    x, y = x * cos + y * sin, y * cos - x * sin

    distance = torch.empty(n, SIZE, SIZE)
    for index in objects.unique().tolist():
        rows = objects == index
        distance[rows] = _distance(OBJECTS[index], x[rows], y[rows])
    distance = distance * scale[:, None, None]

    image = torch.empty(n, 3, SIZE, SIZE)
    for index in styles.unique().tolist():
        rows = styles == index
        image[rows] = _paint(STYLES[index], distance[rows][:, None], u, v, spread[4][rows])
    return image * 2 - 1
