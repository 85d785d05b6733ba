"""Moves alert packets from Kafka through Redis to the classifier and its answers back. Knows no tensors."""
