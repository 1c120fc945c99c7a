"""gammatune: how many tokens should the draft model propose?"""

__version__ = "0.1.0"
