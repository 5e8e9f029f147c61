"""Memory, time and disk that a stage will need, as closed forms over a model's shape. Nothing here imports torch."""
