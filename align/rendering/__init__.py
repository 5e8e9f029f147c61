"""Renders rows as a model reads them: chat templates, thinking modes, token ids and loss masks.

Nothing here imports torch.
"""
