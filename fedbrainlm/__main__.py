"""`python -m fedbrainlm` is the `fedbrainlm` command."""

from cli.main import main

if __name__ == "__main__":
    main()
