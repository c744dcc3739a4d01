"""What trained networks are like: landscapes, other T, activity, energy."""
