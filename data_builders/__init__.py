"""Builders: each turns a source into typed rows."""
