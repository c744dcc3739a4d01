"""Hand-optimized lowerings of hot operations, next to plain references."""
