"""The decoder: its configuration and its one forward function."""
