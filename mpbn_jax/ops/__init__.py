"""Which hot operations are lowered by hand, each beside a plain reference?"""
