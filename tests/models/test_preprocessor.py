"""preprocessor_config.json against the preprocessing of a family."""

import json

import pytest
from family_weights import write

from mijax import models
from mijax._errors import LoadError
from mijax.models._preprocessor import check_preprocessing

# The files of the published models, with the sizes of the goldens.
FILES = {
    "llava": {
        "crop_size": {"height": 12, "width": 12},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 12},
    },
    "idefics3": {
        "do_image_splitting": True,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": 24},
        "resample": 1,
        "size": {"longest_edge": 96},
    },
    "gemma3_images": {
        "do_pan_and_scan": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": 24, "width": 24},
    },
}
CHANGES = [
    ("llava", "do_pad", True),
    ("llava", "size", {"shortest_edge": 14}),
    ("llava", "image_std", [0.5, 0.5, 0.5]),
    ("llava", "resample", 2),
    ("idefics3", "size", {"longest_edge": 48}),
    ("idefics3", "do_image_splitting", False),
    ("gemma3_images", "do_pan_and_scan", True),
    ("gemma3_images", "size", {"height": 24, "width": 36}),
    ("gemma3_images", "rescale_factor", 1.0),
]


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_understood_and_other_values_refused(name, tmp_path):
    folder, path = write(tmp_path, name), tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(FILES[name]))
    reader = models.load(folder, images=True).input
    for other, key, value in CHANGES:
        if other == name:
            path.write_text(json.dumps(FILES[name] | {key: value}))
            with pytest.raises(LoadError, match=f"'{key}' is .* Remove the file"):
                check_preprocessing(reader, folder)
    with pytest.raises(LoadError, match="Remove the file"):
        models.load(folder, images=True)
    check_preprocessing(None, folder)
