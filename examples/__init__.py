"""Small programs that use the packages from outside; each says how to run it."""
