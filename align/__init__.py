"""The house: settings, stages, and what carries a recipe through them."""
