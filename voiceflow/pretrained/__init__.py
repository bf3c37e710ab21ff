"""The model that ships in the package: diarizer.onnx (int8), float weights, its card, params.yaml."""
