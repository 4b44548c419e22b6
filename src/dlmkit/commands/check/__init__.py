"""`dlmkit check`: which parts, which laws, and what is printed."""
