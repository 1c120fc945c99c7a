"""What scripts/train_draft.py is made of: texts, prompts, the target's answers, training, measuring."""
