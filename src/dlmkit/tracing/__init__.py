"""Watching text form: a record of every change that sampling made, as JSON, as a page that plays it, in a terminal."""
