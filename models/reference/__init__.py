"""Real models small enough to keep in a repository: handwritten digits, one baseline and four candidates."""
