"""The model that ships in the package: diarizer.onnx (int8), its float weights, its card, and the released params.yaml."""
