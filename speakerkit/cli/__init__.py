"""The `speakerkit` command: one module a sub-command."""
