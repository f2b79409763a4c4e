"""The protocol: messages, their forms on the wire, and errors."""
