"""What is done with whole stores: check, repair, convert, export."""
