"""Trained models to ONNX, checked against the original."""
