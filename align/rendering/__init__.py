"""Rows as a model reads them: chat templates, thinking modes, token ids and loss masks; nothing here imports torch."""
