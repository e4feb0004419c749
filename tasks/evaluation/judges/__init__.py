"""Judges: who says which of two answers is the better one, and what that word is worth."""
