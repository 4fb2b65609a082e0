"""The command `giftwrap`: every command of the packages below, in one table."""
