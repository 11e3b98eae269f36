"""Configuration templates shared by every throwaway cluster: rootless, separate virtual hosts, container image."""
