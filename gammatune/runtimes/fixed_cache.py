"""What the compiled models share: a cache that stays where it is, of which only the length changes."""


class FixedCache:
    """`length` tokens are in the cache; what lies behind them is overwritten by the next forward. ids: see CachedModel."""

    takes_masks = False
    records_graphs = False

    def __init__(self, vocab_size: int, ids=None):
        self.vocab_size = vocab_size
        self.length = 0

    def reset(self) -> None:
        self.length = 0

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens; no effect where the cache holds no more than that."""
        self.length = min(self.length, length)
