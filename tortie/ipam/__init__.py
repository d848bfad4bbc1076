"""Block arithmetic (pure), the allocator, affinities, release."""
