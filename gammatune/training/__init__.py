"""Training a feature draft for a target: prompts, the target's own answers, several own steps, held-out figures, a card."""
