"""Checks of the installation, of speed, and of plug-ins against the contract."""
