"""Stored crops rendered again: checked, verified, shown."""
