"""`python -m ella_cli` and `accelerate launch -m ella_cli` are the `ella` command."""

from ella_cli.cli.main import main

if __name__ == "__main__":
    main()
