"""Pictures of the photo, of maps, and of units."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mijax import viz

from ._scene import Scene, class_name
from ._units import Units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 8


def detected(scene: Scene) -> "Figure":
    """Draw the objects in the photo."""
    found = scene.found
    labels = [
        f"{class_name(label)} {score:.2f}"
        for label, score in zip(found.classes, found.scores, strict=True)
    ]
    return viz.image_boxes(
        scene.photo, found.boxes, labels=labels, title="Objects and their scores"
    )


def first_maps(scene: Scene) -> "Figure":
    """Draw the maps of the first convolution."""
    maps = scene.first
    rows, captions = {}, {}
    for start in range(0, len(maps), ACROSS):
        some = range(start, min(start + ACROSS, len(maps)))
        label = f"channels {some[0]} to {some[-1]}"
        rows[label] = [gray(maps[i]) for i in some]
        captions[label] = [f"{maps[i].min():.1f} to {maps[i].max():.1f}" for i in some]
    title = "Maps of the first convolution, and the range of each"
    return viz.image_grid(rows, captions=captions, title=title)


def unit_maps(
    scene: Scene, units: Units, fall: Float[np.ndarray, "object unit"], shown: int
) -> "Figure":
    """Draw the maps of the units that carry each object, with its box."""
    corners = scene.input.to_input(scene.found.boxes, scene.photo.shape)
    rows, boxes, captions = {}, {}, {}
    for i, name in enumerate(scene.names):
        order = np.argsort(-fall[i], kind="stable")[:shown]
        cells = [units.cells[unit].tolist() for unit in order]
        maps = [scene.stages[stage][channel] for stage, channel in cells]
        rows[name] = [gray(one) for one in maps]
        left, top, right, bottom = corners[scene.explained[i]]
        boxes[name] = [
            tuple(
                round(side * len(one) / scene.input.size)
                for side in (top, left, bottom, right)
            )
            for one in maps
        ]
        captions[name] = [f"{units.names[unit]}: {fall[i, unit]:.2f}" for unit in order]
    title = "Maps of the units with the largest effects (stage.channel: logits)"
    return viz.image_grid(rows, boxes=boxes, captions=captions, title=title)


def gray(values: Float[np.ndarray, "row column"]) -> np.ndarray:
    """Return a map as an image: black at its 1st percentile, white at its 99th."""
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) / (high - low if high > low else 1)
    return np.clip(scaled, 0, 1)[..., None].astype(float)
