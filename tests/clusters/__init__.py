"""Throwaway clusters for tests; fixtures in tests/conftest.py hand them out."""
