"""Checks of a machine before serving, and of a server by real requests."""
