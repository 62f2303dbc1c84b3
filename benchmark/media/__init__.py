"""Pictures and sounds: decoding, resampling, and PNG and WAV files."""
