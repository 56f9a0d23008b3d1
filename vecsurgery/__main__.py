"""`python -m vecsurgery` is the command `vecsurgery`."""

from vecsurgery.cli import main

if __name__ == "__main__":
    main()
