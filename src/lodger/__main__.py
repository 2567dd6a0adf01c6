"""`python -m lodger`."""

from lodger.cli import main

main()
