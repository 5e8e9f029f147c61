"""Parsers and comparers for mathematical answers, which decide whether an answer equals the gold answer."""
