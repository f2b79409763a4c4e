"""The doors, the wires, and Ray, which hosts both."""
