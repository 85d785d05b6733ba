"""Evaluation of models: scores and reports."""
