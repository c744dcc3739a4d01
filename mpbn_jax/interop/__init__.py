"""Exchange of networks with other programs."""
