"""How answers are decoded, as a typed config. No torch here."""

from dataclasses import dataclass

from gammatune.errors import UserError


@dataclass
class DecodeConfig:
    """How answers are decoded. temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    name: str = "greedy"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
        }
        for key, (holds, rule) in ranges.items():
            if not holds:
                raise UserError(f"decode.{key}={getattr(self, key)} is out of range: it must be {rule}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
