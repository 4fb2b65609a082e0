"""Files that are written whole, flushed, and never removed unless this software wrote them."""
