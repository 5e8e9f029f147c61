"""Online reinforcement learning: prompts to judged completions to updates."""
