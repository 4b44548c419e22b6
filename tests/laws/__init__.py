"""The laws: what every part must obey, checked on sources small enough to enumerate."""
