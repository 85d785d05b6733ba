"""How models learn: objectives, and what they need."""
