"""Devices: choosing them, memory, copies, and coding labels on them."""
