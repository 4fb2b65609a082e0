"""Operations on whole stores: check, repair, convert, export."""
