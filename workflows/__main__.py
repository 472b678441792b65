"""`python -m workflows` is `rayconteur`."""

from workflows.cli import main

main()
