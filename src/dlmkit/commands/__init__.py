"""What the `dlmkit` command does, one file per command that is longer than a line."""
