"""Errors are the built-in ones too, and keep their text."""

import pickle

import pytest

from mijax import _errors

BUILT_IN = {
    "SiteError": (KeyError, IndexError),
    "PositionError": (KeyError, IndexError),
    "ShapeError": (ValueError, TypeError),
    "TokenError": (ValueError,),
    "LoadError": (ValueError,),
    "ConfigError": (ValueError,),
    "OutputError": (OSError,),
    "TrainingError": (FloatingPointError,),
    "NotFiniteError": (ValueError,),
    "NetworkError": (ConnectionError,),
    "FrameError": (ValueError,),
}


def test_the_table_has_every_error():
    kinds = {
        name
        for name, value in vars(_errors).items()
        if isinstance(value, type) and issubclass(value, _errors.MijaxError)
    }
    assert kinds == {"MijaxError", *BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_error_is_a_built_in_one_and_keeps_its_text(name):
    kind = getattr(_errors, name)
    error = kind("There is no site 'a':\x1b[1m give \"b\".")
    for built_in in BUILT_IN[name]:
        with pytest.raises(built_in) as caught:
            raise error
        assert caught.value is error
    assert str(error) == "There is no site 'a':\\x1b[1m give \"b\"."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert str(kind()) == ""


def test_an_output_error_is_not_wrapped_in_another(tmp_path):
    from mijax.io.internal import named  # noqa: PLC0415

    with pytest.raises(_errors.OutputError, match=r"^Name another\.$"), named(tmp_path):
        raise _errors.OutputError("Name another.")
