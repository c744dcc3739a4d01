"""What trained networks are like: landscapes of the loss, other T."""
