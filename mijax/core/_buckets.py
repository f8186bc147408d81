"""Sizes that programs are compiled for: few, so that a new size is seldom new."""


def bucket(n: int, *, least: int = 1, steps: int = 4) -> int:
    """Round a size up to one of a few.

    Args:
        n: the size that is needed.
        least: smallest size to return.
        steps: sizes per octave; at most `1 / steps` of `n` is added.

    Returns:
        A size of at least `n`.

    Examples:
        >>> [bucket(n, least=16) for n in (3, 17, 33, 64, 65)]
        [16, 20, 40, 64, 80]
    """
    n = max(int(n), least)
    step = max(1, 2 ** (n - 1).bit_length() // (2 * steps))
    return -(-n // step) * step
