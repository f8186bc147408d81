"""Weight processing of the model that a dictionary was trained on."""

import cases
import jax
import pytest

from mijax import Site, nn
from mijax import dictionaries as d
from mijax._errors import FrameError

STREAM = Site("resid_post", layer=1)


def saved(path, format, site=STREAM, **options):
    sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(0))
    d.save(sae, path / "sae", format=format, site=site, **options)
    return path / "sae"


@pytest.mark.parametrize("format", ["mijax", "saelens"])
def test_a_model_with_other_weights_is_refused(format, tmp_path):
    model = cases.model("gpt2")
    centred = nn.centre_writing(nn.fold_norm(model))
    path = saved(tmp_path, format, processing=centred.frame)
    with pytest.warns(UserWarning, match=r"apply mijax.nn.centre_writing"):
        stored = d.load(path)
    assert stored.processing == ("fold_norm", "centre_writing")
    assert d.load(path, model=centred).processing == centred.frame
    # Folding norms does not change the residual stream.
    d.load(path, model=nn.centre_writing(model))
    for other in (model, nn.fold_norm(model)):
        with pytest.raises(FrameError, match=r"\('centre_writing',\), the model's is"):
            d.load(path, model=other)


def test_what_saelens_says(tmp_path):
    said = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    path = saved(tmp_path, "saelens", metadata=said)
    with pytest.raises(FrameError):
        d.load(path, model=cases.model("gpt2"))


@pytest.mark.parametrize("format", ["mijax", "saelens", "sparsify"])
def test_files_that_do_not_say_fit_any_model(format, tmp_path):
    path = saved(tmp_path, format, site=None)
    stored = d.load(path, model=nn.centre_writing(cases.model("gpt2")))
    assert stored.processing is None
