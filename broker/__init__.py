"""Moves alert packets from Kafka through Redis to the classifier, and classifications back to Kafka. Handles no
tensors."""
