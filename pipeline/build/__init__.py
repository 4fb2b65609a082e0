"""The build: crops rendered, labelled, encoded and written, block by block."""
