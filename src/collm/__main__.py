"""`python -m collm` is the command `collm`."""

from collm.cli.main import main

if __name__ == "__main__":
    main()
