import pytest
import torch

from tinycanvas.drawing import OBJECTS, SIZE, STYLES, draw, random_labels

PAIRS = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES))]


def picture(shape, style, seed=0):
    """One drawing; those of one seed share place, size, tilt and hue."""
    return draw(torch.tensor([shape]), torch.tensor([style]), torch.Generator().manual_seed(seed))[0]


def every_pair(seed):
    objects, styles = torch.tensor(PAIRS).T
    return draw(objects, styles, torch.Generator().manual_seed(seed))


def test_there_are_ten_objects_with_near_pairs_and_eight_styles_beside_plain():
    assert len(set(OBJECTS)) == len(OBJECTS) >= 10 and {"circle", "ring", "square", "diamond"} <= set(OBJECTS)
    assert len(set(STYLES)) == len(STYLES) >= 9 and "plain" in STYLES
    assert not set(OBJECTS) & set(STYLES)


def test_the_same_generator_state_gives_the_same_pictures():
    assert torch.equal(every_pair(3), every_pair(3))
    torch.manual_seed(5)
    assert torch.equal(every_pair(3), every_pair(3)), "whatever the global seed"
    generator = torch.Generator().manual_seed(3)
    objects, styles = torch.tensor(PAIRS).T
    first, second = draw(objects, styles, generator), draw(objects, styles, generator)
    assert torch.equal(first, every_pair(3)) and not torch.equal(second, first)


def test_pictures_are_rgb_between_minus_one_and_one():
    images = torch.cat([every_pair(seed) for seed in range(5)])
    assert images.shape == (450, 3, SIZE, SIZE) and images.dtype == torch.float32
    # Sunset's lowest row of pixels lies half a pixel past the end of its gradient, which goes to 1.02 there.
    assert images.min() >= -1 and images.max() < 1.025
    assert ((images.amax((1, 2, 3)) - images.amin((1, 2, 3))) > 0.5).all(), "something is drawn on each"


@pytest.mark.parametrize("seed", range(3))
def test_no_two_pairs_of_object_and_style_look_alike(seed):
    images = torch.stack([picture(*pair, seed) for pair in PAIRS]).flatten(1)
    apart = torch.cdist(images, images, p=1) / images.shape[1]
    apart.fill_diagonal_(1)
    # The nearest, square and diamond or circle and square in a faint style, differ in a few dozen of 1024 pixels.
    assert apart.min() > 0.01


@pytest.mark.parametrize("style", STYLES)
def test_drawings_of_one_pair_vary_from_seed_to_seed(style):
    images = torch.stack([picture(0, STYLES.index(style), seed) for seed in range(20)]).flatten(1)
    apart = torch.cdist(images, images, p=1) / images.shape[1]
    apart.fill_diagonal_(1)
    assert apart.min() > 0.003


def test_objects_fill_much_of_the_frame_and_stay_within_it():
    """The plain style has a grey ground: whatever else is there is the object."""
    objects = torch.arange(len(OBJECTS)).repeat_interleave(50)
    images = draw(objects, torch.zeros_like(objects), torch.Generator().manual_seed(1))
    ink = (images - images.new_tensor(0.93 * 2 - 1)).abs().amax(1) > 0.2
    across = [int(rows.any(0).sum()) / SIZE for rows in ink]
    assert min(across) > 0.5
    assert ink[:, [0, -1]].float().mean() < 0.05 and ink[:, :, [0, -1]].float().mean() < 0.05


def test_random_labels_reach_every_pair_alike():
    objects, styles = random_labels(9000, torch.Generator().manual_seed(0))
    counts = torch.bincount(objects * len(STYLES) + styles, minlength=len(PAIRS))
    # 100 a pair, spread by 10: five spreads to either side.
    assert len(counts) == len(PAIRS) and counts.min() > 50 and counts.max() < 150
