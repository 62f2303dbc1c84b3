"""Recordings of spoken digits, their captions and codecs."""
