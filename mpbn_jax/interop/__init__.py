"""How do networks travel to and from other programs?"""
