"""The `gemmir` command: one file per subcommand."""
