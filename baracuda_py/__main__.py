"""`python -m baracuda_py`: the command line, where its script is not on the path."""

from baracuda_py.cli import main

if __name__ == "__main__":
    main()
