"""What trained networks are like: the landscape of their loss."""
