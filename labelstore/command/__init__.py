"""Commands of all packages: flags, messages, signals."""
