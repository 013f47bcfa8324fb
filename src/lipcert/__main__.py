"""``python -m lipcert``: the command line."""

from lipcert.cli import main

if __name__ == "__main__":
    main()
