"""What several benchmarks share; none of these modules is one itself."""
