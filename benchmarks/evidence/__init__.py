"""Claims of the field and of this software, each with its rule, from lines of the studies and from cells of suites."""
