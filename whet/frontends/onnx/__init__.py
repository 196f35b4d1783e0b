"""ONNX in: a file, bytes or a ModelProto becomes a Graph and its weights."""

from whet.frontends.onnx.importer import Imported, from_onnx

__all__ = ["Imported", "from_onnx"]
