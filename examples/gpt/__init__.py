"""The parts of examples/train_gpt.py: data, model, progress, comparison and pictures."""
