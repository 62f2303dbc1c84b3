"""Networks that only score: classifiers and embeddings of pictures, sounds and sentences."""
