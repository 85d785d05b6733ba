"""Moves alert packets from Kafka through Redis to the classifier, and its answers back to Kafka. Knows no tensors."""
