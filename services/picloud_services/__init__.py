"""The control plane and the node agent. See docs/architecture.md for the floors."""
