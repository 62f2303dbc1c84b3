"""Networks that the suite fits itself (codecs, judges, verifiers): fitting, and the store that keeps them."""
