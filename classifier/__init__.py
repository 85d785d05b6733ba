"""The image-time-series model, its data sets and its training. Knows no Kafka, no Redis and no Avro.

Importing this package, `classifier.stamp` or `classifier.sequence` does not import torch.
"""
