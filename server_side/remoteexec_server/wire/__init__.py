"""What travels between client, store and runner: header, messages, frames, payload."""
