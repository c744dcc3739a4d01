"""Hot operations, lowered by hand beside a plain reference."""
