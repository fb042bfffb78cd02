"""Typed configuration: plain data, each section a file; the one source of schema, defaults and docs/config.md."""
