"""Published encoders and decoders, and tiny models of the same classes for tests."""
