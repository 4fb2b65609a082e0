"""Claims about dataset distillation and about this software, each judged by a rule from measured results."""
