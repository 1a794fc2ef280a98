"""The `levsketch` command."""
