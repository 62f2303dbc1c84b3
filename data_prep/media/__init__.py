"""Corpora of captioned pictures and sounds, and the files of features extracted from them."""
