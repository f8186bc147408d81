"""Names and texts cannot send codes to the terminal."""

from rich.text import Text

from mijax.cli._console import errors, output, print_table


def test_terminal_escapes_are_shown(capsys):
    bad = "\x1b]0;title\x07\x9b31m\u202e"
    shown = r"\x1b]0;title\x07\x9b31m\u202e"
    output().print(f"{bad}\nnext", soft_wrap=True)
    output().print(Text(bad, style="bold"))
    errors().print(bad)
    print_table(bad, [bad], [[bad], [Text(bad)]])
    out, err = capsys.readouterr()
    assert out.count(shown) == 4
    # Text drops the bell on its own.
    assert out.count(shown.replace(r"\x07", "")) == 2
    assert shown in err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
    assert "\nnext" in out
