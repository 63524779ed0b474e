"""`python -m gemmir` is the `gemmir` command."""

from gemmir.cli.main import run_process

if __name__ == "__main__":
    run_process()
