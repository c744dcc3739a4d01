"""Studies for --mode=reproduce: a function get_study() in each file."""
