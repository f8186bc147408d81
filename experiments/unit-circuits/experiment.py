"""Channels that carry a class in two image classifiers.

Papers: He et al. 2015, arXiv:1512.03385 (ResNet-20 for CIFAR-10); Sandler et al. 2018,
arXiv:1801.04381 (MobileNetV2); the question is that of Morcos et al. 2018,
arXiv:1803.06959, "On the importance of single directions for generalization", and Bau
et al. 2020, arXiv:2009.05041, "Understanding the role of individual units in a deep
neural network"; the estimate is the first-order one of Molchanov et al. 2017,
arXiv:1611.06440.

Claim: one backward pass ranks the channels of a classifier nearly as removing each of
them does, and removing the few that are ranked highest for a class makes the network
give up that class, while as many channels of the same layers drawn at random change
little.

For each image that the network classifies correctly, the margin is the logit of its
class minus that of the strongest other class. The attribution of a channel is the sum
over its map of activation times gradient of the margin; its effect is the fall of the
margin when the map is set to zero, measured for every channel by one compiled program.
Two checks hold by construction: behind the last activation the logits are linear in the
means of the channels, so that attribution and effect are equal there; and a channel
that is silent in an image has no effect on it. Some effects are measured once more
without the compiled sweep.

Weights and images are files that you give: `--weights`, a safetensors file whose names
`mijax.models` documents with the model, and `--data`, an .npz file with `images` and
`labels` or a zip of pictures called CLASS_name.jpg. The model `planted` makes both: a
small network in which one channel of each layer carries each class.

Commands:
    mijax run unit-circuits --weights resnet20.safetensors --data cifar10.npz
    mijax run unit-circuits/mobilenet --weights mobilenet_v2.safetensors --data val.zip
    mijax run unit-circuits/tiny

Runtime: see experiments/README.md.
"""

import mijax.experiment
from mijax import Chunks
from mijax._errors import ConfigError
from mijax.models import ImageModel, load_image_model

from . import _planted as planted
from ._images import Images, chosen, prepared, read_images
from ._report import Found, report
from ._units import (
    Units,
    ablate_each,
    ablate_sets,
    answers,
    attribution,
    excitement,
    logits_of,
)
from ._verify import apart, set_lanes

PLANTED = "planted"
PLANTED_IMAGES = 24


class Config(mijax.experiment.Config):
    """What is looked into."""

    model: str = "cifar-resnet20"
    "Name of an image model, or `planted`."
    weights: str | None = None
    "File of its weights (.safetensors)."
    data: str | None = None
    "File of images and labels (.npz, or a zip of pictures)."
    site: str = "relu"
    "Site whose channels are the units."
    last: int | None = None
    "Only the last layers of the site; all without it."
    classes: tuple[str, ...] = ()
    "Classes whose images are used; all without it."
    per_class: int = 10
    "Images of each class, those that the network classifies correctly."
    sets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    "Numbers of units that are removed together."
    compared: int = 8
    "Number of units, one of `sets`, for which the report compares sets."
    draws: int = 5
    "Random sets of each size."
    pictured: int = 3
    "Classes whose units are drawn."
    shown: int = 6
    "Units of each class in tables and pictures."
    at_once: int = 64
    "Runs in one step of the program that removes sets."
    seed: int = 0
    "Seed of random sets."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.compared not in config.sets:
        raise ConfigError(
            f"compared is {config.compared}; choose one of sets, {config.sets}."
        )
    run.seed("random sets", config.seed)
    found = measured(config, run)
    report(
        found,
        run,
        shown=config.shown,
        pictured=config.pictured,
        compared=config.compared,
    )


def measured(config: Config, run: mijax.experiment.Run) -> Found:
    """Measures attribution and effect of every unit, and of sets of units."""
    loaded, images, truth = opened(config, run)
    model = loaded.model
    with run.progress("classify"):
        inputs = prepared(images, loaded.input)
        logits = logits_of(model, inputs)
    right = logits.argmax(1) == images.labels
    run.number("accuracy", float(right.mean()), note=f"of {len(right)} images")
    used = chosen(images, right, classes=config.classes, per_class=config.per_class)
    x, labels = inputs[used], images.labels[used]
    units = Units.of(model, x[0], config.site, last=config.last)
    targets = answers(logits[used], labels)
    with run.progress("attribution"):
        estimate = attribution(model, x, units, targets)
    with run.progress("ablate every unit") as progress:
        exact = ablate_each(
            model,
            x,
            units,
            targets,
            progress=progress,
            chunks=Chunks(resume=str(run.scratch / "units.npz")),
        )
    lanes = set_lanes(
        estimate,
        exact.fall,
        labels,
        units,
        sizes=config.sets,
        draws=config.draws,
        seed=config.seed,
    )
    with run.progress("ablate sets") as progress:
        sets = ablate_sets(
            model,
            x,
            units,
            targets,
            lanes.off,
            progress=progress,
            at_once=config.at_once,
        )
    return Found(
        loaded=loaded,
        images=images,
        inputs=inputs,
        used=used,
        units=units,
        targets=targets,
        estimate=estimate,
        exact=exact,
        lanes=lanes,
        sets=sets,
        active=excitement(model, inputs, units),
        apart=apart(model, x, units, targets, exact),
        truth=truth,
    )


def opened(
    config: Config, run: mijax.experiment.Run
) -> tuple[ImageModel, Images, dict[int, tuple[int, ...]] | None]:
    """Opens the model, the images, and the truth if there is one."""
    truth = None
    if config.model == PLANTED:
        made = planted.planted(run.scratch, images=PLANTED_IMAGES, seed=config.seed)
        weights, data, truth = str(made.weights), str(made.images), made.channels
        loaded = load_image_model(planted.SPEC, weights, input=planted.INPUT)
    else:
        if config.weights is None or config.data is None:
            raise ConfigError(
                f"Give --weights, the weights of {config.model} (.safetensors), and "
                "--data, images with labels (.npz, or a zip of CLASS_name.jpg)."
            )
        data = config.data
        loaded = load_image_model(config.model, config.weights)
    images = read_images(data)
    run.weights(config.model, loaded.digest)
    run.data("images", images.digest)
    return loaded, images, truth
