"""Small programs that use the packages from outside; each docstring has the command that runs it."""
