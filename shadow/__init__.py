"""What the candidate did, beside what the baseline did: pairs, sums, durable evidence, labels."""
