"""Published recipes of other methods, as configurations."""
