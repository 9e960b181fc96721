"""`python -m rinalmo`."""

from rinalmo.cli import main

main()
