"""Building blocks of ``scripts/train_draft.py``: corpus, teacher labels, student training, evaluation."""
