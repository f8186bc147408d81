"""`python -m mijax` is `mijax`."""

from mijax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
