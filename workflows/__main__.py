"""`python -m workflows` is `rayconteur`."""

from workflows.cli.commands import main

main()
