"""Image-time-series models, their data sets and training. Independent of Kafka, Redis and Avro.

Importing this package, `classifier.stamp` or `classifier.history` does not import torch.
"""
