"""Malformed input: coverage-guided into the decoders, and by the hundred thousand over HTTP and gRPC."""
