"""The bench: ``python -m training <command>``."""
