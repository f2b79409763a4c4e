"""Is noise left alone? A recorded trace of a baseline beside itself, resampled: ``python -m benchmarks.noise``."""
