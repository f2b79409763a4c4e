"""What mirroring costs the clients, beside its goals."""
