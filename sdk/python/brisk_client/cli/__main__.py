"""`python -m brisk_client.cli`: the same as `brisk`."""

from brisk_client.cli import main

if __name__ == "__main__":
    main()
