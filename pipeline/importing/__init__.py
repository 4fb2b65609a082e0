"""Published tensor files turned into class folders."""
