"""Hand-optimized convolution and recurrence, next to plain versions."""
